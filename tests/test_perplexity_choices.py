"""Perplexity and multiple choice against a hand-written sum over single sequences."""

import math

import pytest
import torch

from labkit import data, models
from labkit.errors import DataError
from labkit.evaluate import choices, perplexity


@pytest.fixture(scope="module")
def tiny():
    return models.load("smoke", seed=5)


def log_prob(model, ids: list[int], start: int) -> float:
    """log p of the tokens from `start` on, one sequence, no padding."""
    with torch.no_grad(), models.autocast():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    return sum(logits[t - 1].log_softmax(-1)[ids[t]].item() for t in range(start, len(ids)))


def test_perplexity_is_the_exponential_of_the_mean_loss(tiny):
    model, tokenizer = tiny
    texts = ["The river is long.", "A stone.", "Paris is the capital of France, and it is large."]
    rows = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    tokens = sum(len(row) - 1 for row in rows)
    nats = -sum(log_prob(model, row, 1) for row in rows) / tokens
    found = perplexity.perplexity(model, tokenizer, texts, batch_size=2)
    assert found["tokens"] == tokens
    assert found["nats_per_token"] == pytest.approx(nats, rel=5e-3)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]))
    assert found["low"] <= found["perplexity"] <= found["high"]
    size = sum(len(text.encode()) for text in texts)
    assert found["bits_per_byte"] == pytest.approx(found["nats_per_token"] * tokens / math.log(2) / size)


def test_what_parts_texts_is_predicted_but_no_byte_of_them(tiny):
    model, tokenizer = tiny
    texts = ["The river is long.", "A stone."]
    _, counts, sizes = perplexity.text_losses(model, tokenizer, [texts])
    alone = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert counts.tolist() == [sum(alone) + 1] and sizes.tolist() == [sum(len(text.encode()) for text in texts)]


def test_a_stride_is_the_full_context_up_to_what_the_window_holds(tiny):
    """Every token after the first window is scored once, with window - stride tokens before it at least."""
    model, tokenizer = tiny
    text = "The river is long and the stone is old. " * 3
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
    full = perplexity.perplexity(model, tokenizer, [text])
    for stride in (1, 7, len(ids) - 1):
        found = perplexity.perplexity(model, tokenizer, [text], max_length=len(ids), stride=stride)
        assert found == pytest.approx(full)
    for window, stride in ((12, 1), (12, 5), (16, 15)):
        found = perplexity.perplexity(model, tokenizer, [text], max_length=window, stride=stride, batch_size=3)
        nats, end = -log_prob(model, ids[:window], 1), window
        while end < len(ids):
            scored, end = end, min(end + stride, len(ids))
            nats -= log_prob(model, ids[end - window : end], window - (end - scored))
        assert found["tokens"] == len(ids) - 1
        assert found["nats_per_token"] == pytest.approx(nats / (len(ids) - 1), rel=5e-3)
        assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=5e-3)


def test_windows_score_every_token_once():
    for window, stride in ((4, 1), (4, 2), (5, 4), (4, None)):
        found = perplexity.windows(list(range(11)), window, stride)
        assert [token for ids, start in found for token in ids[start:]] == list(range(1, 11))
        assert all(len(ids) == window for ids, _ in found)
        assert min(start for _, start in found[1:]) >= window - (stride or window - 1)
    for stride in (0, 4, -1):
        with pytest.raises(DataError, match="stride must be from 1 to max_length - 1 = 3; got"):
            perplexity.windows([1, 2, 3], 4, stride)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(tiny):
    model, tokenizer = models.load("smoke", seed=5)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # tied: every logit is 0
    found = perplexity.perplexity(model, tokenizer, ["The river is long."])
    assert found["perplexity"] == pytest.approx(model.config.vocab_size, rel=1e-3)


def test_the_choice_is_the_likeliest_per_character(tiny):
    model, tokenizer = tiny
    asked = choices.mmlu_dev()[:6]
    rows = choices.choose(model, tokenizer, asked, batch_size=5)
    for one, row in zip(asked, rows, strict=True):
        head = [tokenizer.bos_token_id, *tokenizer(f"Question: {one['question']}\nAnswer:")["input_ids"]]
        for choice, likelihood in zip(one["choices"], row["likelihoods"], strict=True):
            ids = head + tokenizer(f" {choice}")["input_ids"]
            assert likelihood == pytest.approx(log_prob(model, ids, len(head)) / len(choice), rel=1e-2)
        best = max(range(4), key=row["likelihoods"].__getitem__)
        assert row["chosen"] == best and row["correct"] == (best == one["answer"])


def test_the_exemplars_are_281_with_four_choices_and_57_subjects():
    rows = choices.mmlu_dev()
    assert len(rows) == 281 and len({row["subject"] for row in rows}) == 57
    assert all(len(row["choices"]) == 4 and 0 <= row["answer"] < 4 and row["question"] for row in rows)


def test_held_out_english_is_in_no_training_document():
    texts = perplexity.held_out_texts()
    assert len(texts) > 50 and not set(texts) & set(data.corpus()[0]["text"])
