"""The token view: what is masked, what is learned from, what the model gives each token; text stays text."""

import math

import pytest
import torch

from labkit import data, models
from labkit.config import SFTConfig
from labkit.stages import sft
from labkit.ui import tokens


@pytest.fixture(scope="module")
def pair():
    return models.load("smoke")


def test_probabilities_are_the_models(pair):
    model, tokenizer = pair
    row = data.chat_row(tokenizer, "What is a river?", "A stream.")
    found = tokens.token_probabilities(model, row)
    with torch.no_grad(), models.autocast():
        logp = model(torch.tensor([row["input_ids"]])).logits[0].float().log_softmax(-1)
    assert found[0] is None and len(found) == len(row["input_ids"])
    for place in range(1, len(found)):
        assert math.isclose(found[place], logp[place - 1, row["input_ids"][place]].exp().item(), rel_tol=1e-3)


def test_the_view_escapes_and_says_what_it_cannot_show(pair):
    model, tokenizer = pair
    rows = [
        data.chat_row(tokenizer, "<script>alert(1)</script>", "\" onmouseover='x'"),
        data.chat_row(tokenizer, "b", "c"),
    ]
    view = tokens.TokenView(tokenizer, rows, model)
    assert "<script" not in view.text.value and "masked" in view.text.value and "learned from" in view.text.value
    for colouring in tokens.COLOURINGS:
        view.colouring.value = colouring
        assert "loss" in view.text.value
    view.row.value = 7
    assert "from 0 to 1" in view.text.value and view.row.value == 7
    assert "text/html" in view._repr_mimebundle_()


def test_the_first_batch_is_kept_as_the_model_got_it(store, pair):
    config = SFTConfig(model="smoke", steps=2, eval_every=2, batch_size=4)
    run = sft.train(config, "smoke", "smoke", say=lambda line: None)
    rows = tokens.first_batch(run)
    assert len(rows) == 4 and {"input_ids", "labels", "attention_mask"} <= set(rows[0])
    _, tokenizer = pair
    known, _ = data.instructions()
    prompts = {row["prompt"] for row in known}
    for row in rows:
        seen = [token for token, keep in zip(row["input_ids"], row["attention_mask"], strict=True) if keep]
        text = tokenizer.decode(seen)
        assert text.split("<|assistant|>")[0].removeprefix("<|user|> ") in prompts
        learned = [label for label in row["labels"] if label != data.IGNORED]
        assert learned and learned[-1] == tokenizer.eos_token_id
