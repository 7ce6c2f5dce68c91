"""Model cards: front matter that the Hub accepts, figures with intervals, and exports that overwrite nothing."""

import json

import pytest
from huggingface_hub import ModelCard
from test_lineage import BASE, answer, family, keep_answers, rewrite, trained

from labkit import cards, lineage
from labkit.config import SFTConfig
from labkit.errors import RunError
from labkit.evaluate import checkers


def give_checkpoint(run, **config):
    run.checkpoint.mkdir()
    (run.checkpoint / "config.json").write_text(json.dumps(config))
    (run.checkpoint / "model.safetensors").write_bytes(b"weights")
    (run.checkpoint / "README.md").write_text("what a trainer left here")
    return run


def test_the_card_parses_and_says_how_the_model_was_made(store):
    sft, dpo, *_ = family()
    card = ModelCard(cards.model_card(dpo))
    assert card.data.to_dict() == {
        "library_name": "transformers", "tags": ["training-pipeline-lab", "dpo"], "base_model": sft.id,
    }  # fmt: skip
    for part in (
        f"# {dpo.id}", f"{sft.id} ← {BASE}", "| beta | 0.1 |", "| data hash | d1 |", "| seed | 0 |",
        "| accuracy | 0.5 |", "python 3.", "peak memory", "AutoModelForCausalLM.from_pretrained",
        "Licence: not stated", "No answers",
    ):  # fmt: skip
        assert part in card.text


def test_metrics_carry_the_intervals_of_the_evaluation(store):
    run = trained("sft", SFTConfig(), BASE)
    rows = [answer(number, number % 3 > 0, kind=f"k{number % 2}") for number in range(40)]
    rows += [answer(number, number % 2, split="how-to", stopped=False) for number in range(40, 50)]
    rows += [answer(number, number % 4 > 0, split="unsafe", safe=float(number % 4 > 0)) for number in range(50, 60)]
    assert "safe_declines" not in checkers.score(rows[:50]) and checkers.score([]) == {}
    keep_answers(run, rows)
    share, low, high = checkers.score(rows)["entity_accuracy"]
    assert rf"| entity_accuracy | {share:.1%} \[{low:.1%}, {high:.1%}\] |" in cards.model_card(run)


def test_the_base_model_is_named_where_the_hub_would_accept_it(store):
    for number, (parent, named) in enumerate({"org/name": True, "/home/me/model": False, "": False}.items()):
        data = ModelCard(cards.model_card(trained("sft", SFTConfig(seed=number), parent))).data.to_dict()
        assert data.get("base_model") == (parent if named else None)


def test_a_licence_is_stated_only_where_it_was_given(store):
    run = trained("sft", SFTConfig(), BASE)
    card = ModelCard(cards.model_card(run, license="apache-2.0"))
    assert card.data.license == "apache-2.0" and "Licence: apache-2.0." in card.text


def test_hostile_text_is_neither_markup_nor_a_table_cell(store):
    run = trained("sft", SFTConfig(), BASE)
    label, corpus = "<img src=x> ![a](http://x) `b`", "a|b\n---\n<script>\ud800"
    rewrite(run, label=label, config={**run.config, "data": corpus})
    card = ModelCard(cards.model_card(run.reload()))
    assert card.data.to_dict()["tags"] == ["training-pipeline-lab", "sft"]
    assert "<img" not in card.text and "<script" not in card.text and "![a]" not in card.text
    (line,) = [line for line in card.text.split("\n") if line.startswith("| data |")]
    assert r"a\|b" in line and "&lt;script>" in line
    card.text.encode("utf-8")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": {"architectures": ["Lfm2ForCausalLM"]}}, "AutoModelForCausalLM"),
        ({"config.json": {"architectures": ["LlamaForSequenceClassification"]}}, "AutoModelForSequenceClassification"),
        ({"adapter_config.json": {"base_model_name_or_path": "x"}}, "PeftModel"),
    ],
)
def test_the_loading_code_fits_what_was_saved(store, files, expected):
    run = trained("sft", SFTConfig(), BASE)
    run.checkpoint.mkdir()
    for name, content in files.items():
        (run.checkpoint / name).write_text(json.dumps(content))
    card = ModelCard(cards.model_card(run))
    assert f"model = {expected}.from_pretrained" in card.text
    assert card.data.library_name == ("peft" if expected == "PeftModel" else "transformers")


def test_export_copies_the_checkpoint_and_its_card(store, tmp_path):
    run = give_checkpoint(trained("sft", SFTConfig(), BASE))
    lineage.rename(run.id, "Mine")
    folder = cards.export(run.reload(), tmp_path / "new" / "folder")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert ModelCard((folder / "README.md").read_text(encoding="utf-8")).text.lstrip().startswith("# Mine")
    assert (run.checkpoint / "README.md").read_text() == "what a trainer left here"
    (tmp_path / "empty").mkdir()
    assert (cards.export(run, tmp_path / "empty") / "config.json").exists()


def test_export_refuses_what_it_would_spoil(store, tmp_path):
    run = give_checkpoint(trained("sft", SFTConfig(), BASE))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for folder in (tmp_path / "full", tmp_path / "full" / "thesis.txt"):
        with pytest.raises(RunError, match="new or empty"):
            cards.export(run, folder)
    with pytest.raises(RunError, match="outside the run store"):
        cards.export(run, run.checkpoint / "copy")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    with pytest.raises(RunError, match="must have a checkpoint"):
        cards.export(trained("sft", SFTConfig(seed=3), BASE), tmp_path / "other")
    assert not (tmp_path / "other").exists()
