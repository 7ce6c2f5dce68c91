"""What is exported answers as the lab does: opened in a fresh process by the code of its own card.

Every stage, tuned in full, by LoRA, by LoRA on a LoRA run, and by LoRA on 8 and 4 bits; exported as it is and merged.
The same greedy tokens, and logits (or the reward) within 1e-4 in fp32. Quantized weights compute in fp32 here too.
4 bits are held to 5e-3 (measured: 1.6e-3), for bitsandbytes' kernel for CPUs, which the lab switches off, computes in
bf16; 8 bits to 0.05, for LLM.int8 rounds the hidden states to 8 bits as well, which merged weights are spared.
"""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from labkit import adapters, cards, data, exports, models, pipeline, rewards, rollouts, runs
from labkit.config import STAGES

WORDS = ["river", "stone", "lamp", "house", "dog", "cat"]
QUESTION = [{"role": "user", "content": "Say river stone"}]
STAGE_DATA = {
    "sft": "sft.jsonl",
    "reward": "pairs.jsonl",
    "dpo": "pairs.jsonl",
    "orpo": "pairs.jsonl",
    "ppo": "pairs.jsonl",
}
TUNINGS = {
    "full": {"tuning": "full"},
    "lora": {"tuning": "lora"},
    "lora on lora": {"tuning": "lora"},
    "8bit": {"tuning": "lora", "quantization": "8bit"},
    "4bit": {"tuning": "lora", "quantization": "4bit"},
}
TOLERANCE = {"8bit": 0.05, "4bit": 5e-3}

CHILD = """
import json, re, sys, torch
for line in open(sys.argv[1]):
    case = json.loads(line)
    code = re.search(r"```python\\n(.*?)```", open(case["folder"] + "/README.md").read(), re.S)[1]
    names = {}
    exec(compile(code, case["folder"], "exec"), names)
    model, tokenizer, ids = names["model"], names["tokenizer"], torch.tensor([case["ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    labkit = [name for name in sys.modules if name.startswith("labkit")]
    found = {"logits": logits[0].float().flatten().tolist(), "modules": labkit}
    if "tokens" in names:
        found["tokens"] = model.generate(ids, generation_config=names["settings"], max_new_tokens=12)[0].tolist()
        found["said"] = tokenizer.apply_chat_template(case["question"], add_generation_prompt=True)["input_ids"] \
            if tokenizer.chat_template else case["ids"]
    open(case["folder"] + "/found.json", "w").write(json.dumps(found))
"""


def length(prompts: list[str], texts: list[str]) -> torch.Tensor:
    return torch.tensor([len(text) / 10 for text in texts])


@pytest.fixture(scope="module", autouse=True)
def in_fp32():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "bf16", lambda: False)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("trips")
    rows = [{"prompt": f"Say {a} {b}", "answer": f"{a} {b}."} for a in WORDS for b in WORDS]
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": r["answer"] + " I hope."} for r in rows]
    for name, content in (("sft", rows), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (root / "texts.txt").write_text("\n\n".join(f"{r['prompt']}. {r['answer']}" for r in rows))
    tokenizer = models.train_tokenizer([f"{row['prompt']}. {row['rejected']}" for row in pairs], 320)
    models.new_model(tokenizer, hidden_size=64, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_RUNS", str(root / "runs"))
        yield root


def train(root: Path, stage: str, source: Path, parent: str, **knobs) -> runs.Run:
    where = {"corpus": str(root / "texts.txt"), "block_size": 16} if stage == "pretrain" else {}
    where |= {"data": str(root / STAGE_DATA[stage])} if stage != "pretrain" else {}
    few = {"steps": 3, "eval_every": 3, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0}
    more = {}
    if stage == "ppo":
        few |= {"max_new_tokens": 6, "minibatch_size": 2, "reward": rollouts.name_of(length)}
        more = {"reward_function": length}
    config = STAGES[stage](model=str(root / "model"), **{**few, **where, **knobs})
    start = () if stage == "pretrain" else (source, parent)
    return import_module(f"labkit.stages.{stage}").train(config, *start, say=lambda line: None, **more)


@pytest.fixture(scope="module")
def exported(root) -> dict[str, tuple[runs.Run, Path]]:
    """case -> (run, folder): every combination, exported and opened by one process that knows nothing of the lab."""
    found = {"pretrain full": train(root, "pretrain", root / "model", "tiny")}
    inner = train(root, "sft", root / "model", "tiny", tuning="lora", seed=1)
    quantizes = models.device() in models.QUANTIZES
    for stage in STAGE_DATA:
        for name, knobs in TUNINGS.items():
            if "quantization" in knobs and not quantizes:
                continue
            source, parent = (inner.checkpoint, inner.id) if name == "lora on lora" else (root / "model", "tiny")
            found[f"{stage} {name}"] = train(root, stage, source, parent, **knobs)
    folders, lines = {}, []
    for name, run in found.items():
        for merged in (False, True) if adapters.is_adapter(run.checkpoint) else (False,):
            case = f"{name}{' merged' if merged else ''}"
            folders[case] = run, cards.export(run, root / "out" / case.replace(" ", "-"), merged=merged)
            lines.append(json.dumps({"folder": str(folders[case][1]), "ids": ids_of(run), "question": QUESTION}) + "\n")
    (root / "cases.jsonl").write_text("".join(lines))
    plain = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(root / "cases.jsonl")], capture_output=True, text=True, env=plain, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


def ids_of(run: runs.Run) -> list[int]:
    """The question in the run's own format, as the lab puts it, and for a reward an answer with it."""
    _, tokenizer = models.load(run.checkpoint) if run.stage != "reward" else (None, rewards.load(run).tokenizer)
    if run.stage == "reward":
        return rewards.encode(tokenizer, ["Say river stone"], ["river stone."], 64)[0]
    text = data.asked(tokenizer, QUESTION) if tokenizer.chat_template else "Say river stone"
    return tokenizer(text, add_special_tokens=False)["input_ids"]


FORMS = [(tuning, form) for tuning in TUNINGS for form in ("", " merged") if tuning != "full" or not form]
CASES = ["pretrain full", *(f"{stage} {tuning}{form}" for stage in STAGE_DATA for tuning, form in FORMS)]


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_answers_as_the_lab_does(exported, case):
    if case not in exported:
        pytest.skip(f"no quantized weights on {models.device()}")
    run, folder = exported[case]
    found, ids = json.loads((folder / "found.json").read_text()), torch.tensor([ids_of(run)])
    near = next((near for bits, near in TOLERANCE.items() if bits in case), 1e-4)
    assert not found["modules"]  # nothing of the lab took part
    with torch.no_grad():
        if run.stage == "reward":
            score = rewards.load(run)(["Say river stone"], ["river stone."])
            assert found["logits"] == pytest.approx(score.tolist(), abs=near)
            return
        model, tokenizer = models.load(run.checkpoint)
        wanted = model(input_ids=ids).logits[0].float()
        tokens = model.generate(
            ids, eos_token_id=sorted(models.stops(model, tokenizer)), do_sample=False, max_new_tokens=12
        )
    assert torch.tensor(found["logits"]).view_as(wanted).sub(wanted).abs().max() <= near
    assert found["said"] == ids[0].tolist()
    if "8bit" not in case:
        assert found["tokens"] == tokens[0].tolist()


def test_an_adapter_on_an_adapter_needs_both(exported):
    """The outer one alone, on the model beneath both, answers otherwise: the case is one that can fail."""
    from peft import PeftModel

    run, folder = exported["dpo lora on lora"]
    right = models.load(run.checkpoint)[0]
    wrong = PeftModel.from_pretrained(models.load(run.config["model"])[0], folder)
    ids = torch.tensor([ids_of(run)])
    with torch.no_grad():
        assert (right(input_ids=ids).logits - wrong(input_ids=ids).logits).abs().max() > 1e-2


def test_the_card_says_what_gguf_takes(exported):
    for case, says in {
        "sft full": "Run llama.cpp's",
        "sft lora": "Export it merged",
        "reward full": "no form for it",
    }.items():
        assert says in (exported[case][1] / "README.md").read_text()


def test_a_base_that_is_gone_is_told_before_a_file_is_written(root, tmp_path, exported):
    run, _ = exported["sft lora"]
    file = run.checkpoint / "adapter_config.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    try:
        with pytest.raises(exports.RunError, match=r"the adapter's base must be there.*gone"):
            cards.export(run, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    finally:
        file.write_text(before)


def test_only_a_run_s_own_checkpoint_keeps_answers_beside_it(root, tmp_path, exported):
    (tmp_path / "checkpoint").mkdir()
    assert pipeline.answer_folder(tmp_path / "checkpoint") is None
    run, _ = exported["sft full"]
    assert pipeline.answer_folder(run.checkpoint) == run.path


def test_a_card_names_no_code_but_transformers_and_peft(exported):
    for _, folder in exported.values():
        code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
        assert set(re.findall(r"^(?:from|import) (\w+)", code, re.M)) <= {"torch", "peft", "transformers"}
