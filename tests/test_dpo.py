"""DPO's losses: trl's own code against the formulas of the papers, and the optimum of a bandit in closed form."""

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import softplus

from labkit import models, preferences
from labkit.config import DPOConfig
from labkit.errors import ConfigError
from labkit.evaluate import answers
from labkit.stages import dpo

LOSSES = next(field for field in dataclasses.fields(DPOConfig) if field.name == "loss_type").metadata["choices"]
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


def by_hand(name, c, r, b, e):
    """The loss of log-ratios c and r (answers of one token), written from the papers."""
    m, log_s, s = b * (c - r), lambda x: -softplus(-x), torch.sigmoid
    smooth = lambda d: -(1 - e) * log_s(d) - e * log_s(-d)  # noqa: E731
    g = s(m / 0.05)
    sft = -c
    formulas = {
        "sigmoid": -log_s(m),
        "sigmoid_norm": -log_s(m),
        "ipo": (c - r - 1 / (2 * b)) ** 2,
        "hinge": (1 - m).clamp(min=0),
        "robust": (-(1 - e) * log_s(m) + e * log_s(-m)) / (1 - 2 * e),
        "exo_pair": s(m) * (log_s(m) - torch.log1p(-torch.tensor(e))) + s(-m) * (log_s(-m) - torch.tensor(e).log()),
        "nca_pair": -log_s(b * c) - 0.5 * log_s(-b * c) - 0.5 * log_s(-b * r),
        "bco_pair": -log_s(b * c) - log_s(-b * r),
        "sppo_hard": (c - 0.5 / b) ** 2 + (r + 0.5 / b) ** 2,
        "aot": smooth(b * (c - r).sort().values),
        "aot_unpaired": smooth(b * (c.sort().values - r.sort().values)),
        "apo_zero": 1 - s(b * c) + s(b * r),
        "apo_down": s(b * c) + 1 - s(m),
        "discopop": (1 - g) * -log_s(m) + g * torch.exp(-m),
        "sigmoid_sft": -log_s(m) + sft,
        "mpo": -0.8 * log_s(m) + 0.2 * (-log_s(b * c) - log_s(-b * r)) + sft,
        "sft": sft,
    }
    return formulas[name].mean()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_each_loss_is_its_paper_s(name, beta):
    draw = torch.Generator().manual_seed(0)
    c, r = (2 * torch.randn(16, generator=draw) - shift for shift in (1, 3))
    e = 0.1 if name in SMOOTHED else 0.0
    found = dpo.loss_of(dpo.LogProbs(c, r), name, beta, e)
    torch.testing.assert_close(found, by_hand(name, c, r, beta, e))


def test_what_trl_is_told():
    run = {name: dpo.loss_arguments(name, 0.1) for name in LOSSES}
    assert run["mpo"]["loss_weights"] == [0.8, 0.2, 1.0] and run["sigmoid_sft"]["loss_type"] == ["sigmoid", "sft"]
    assert run["exo_pair"]["label_smoothing"] == 0.001 and run["robust"]["label_smoothing"] == 0.0


def test_label_smoothing_acts_on_four_losses_and_is_refused_elsewhere():
    c, r = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 0.5])
    for name in LOSSES:
        plain, smooth = (dpo.loss_of(dpo.LogProbs(c, r), name, 0.5, e) for e in (0.05, 0.3))
        assert torch.equal(plain, smooth) is (name not in SMOOTHED)
        if name not in SMOOTHED:
            with pytest.raises(ConfigError, match="label_smoothing"):
                DPOConfig(loss_type=name, label_smoothing=0.1)


def test_a_bandit_reaches_its_closed_form():
    """Six answers, 200,000 pairs of a Bradley-Terry reward: DPO's optimum is ref exp(reward / beta), normalised."""
    draw, beta = torch.Generator().manual_seed(1), 0.5
    reference = torch.tensor([0.30, 0.25, 0.20, 0.12, 0.08, 0.05])
    reward = torch.tensor([0.0, 0.4, -0.3, 0.9, 0.6, -0.5])
    optimum = reference * (reward / beta).exp() / (reference * (reward / beta).exp()).sum()
    a = torch.randint(6, (200_000,), generator=draw)
    b = (a + torch.randint(1, 6, a.shape, generator=draw)) % 6
    a_wins = torch.rand(a.shape, generator=draw) < torch.sigmoid(reward[a] - reward[b])
    chosen, rejected = torch.where(a_wins, a, b), torch.where(a_wins, b, a)
    found = {name: bandit(reference, chosen, rejected, beta, name) for name in ("sigmoid", "hinge")}
    assert 0.5 * (reference - optimum).abs().sum() > 0.2  # there is something to learn
    assert 0.5 * (found["sigmoid"] - optimum).abs().sum() < 0.02
    assert 0.5 * (found["hinge"] - optimum).abs().sum() > 0.05  # no likelihood of these choices: another optimum


def bandit(reference, chosen, rejected, beta, name):
    logits = reference.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        ratio = logits.log_softmax(-1) - reference.log()
        loss = dpo.loss_of(dpo.LogProbs(ratio[chosen], ratio[rejected]), name, beta)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("dpo")
    words = ["river", "stone", "lamp"]  # nine pairs, one of them held out
    rows = [
        {"prompt": f"Say {a} {b}", "chosen": f"{a} {b}.", "rejected": f"{a} {b}. I hope."} for a in words for b in words
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = models.train_tokenizer([f"{row['prompt']}. {row['rejected']}" for row in rows], 300)
    models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


@pytest.mark.parametrize("name", LOSSES)
def test_the_trainer_logs_the_formula_s_loss(folder, store, name):
    """Before the first step (all log-ratios 0) and after the last, on the held-out pair; and every weight moves."""
    config = DPOConfig(
        model=str(folder / "model"), data=str(folder / "pairs.jsonl"), steps=6, batch_size=4, eval_every=6, beta=1.0,
        loss_type=name, learning_rate=3e-3, warmup_steps=0,
    )  # fmt: skip
    run = dpo.train(config, folder / "model", "tiny", say=lambda line: None)
    logged = [row["held_out_loss"] for row in run.history() if "held_out_loss" in row]
    (policy, tokenizer), (reference, _) = (models.load(where) for where in (run.checkpoint, folder / "model"))
    _, held_out = preferences.pairs(config.data)
    e = 0.001 if name == "exo_pair" else 0.0
    for loss, model in zip(logged, (reference, policy), strict=True):
        ratios, own = [], 0.0
        for side in ("chosen", "rejected"):
            now, tokens = answers.log_probs(model, tokenizer, held_out["prompt"], held_out[side])
            ratio = now - answers.log_probs(reference, tokenizer, held_out["prompt"], held_out[side])[0]
            ratios.append(ratio / tokens if name in ("ipo", "sigmoid_norm") else ratio)
            own += -float(now / tokens) if side == "chosen" else 0.0
        own = own + float(ratios[0]) if name in ("sigmoid_sft", "mpo", "sft") else 0.0  # by_hand has -c in its place
        assert loss == pytest.approx(by_hand(name, *ratios, 1.0, e).item() + own, rel=0.03, abs=0.03)  # bf16
    before, after = (dict(model.named_parameters()) for model in (reference, policy))
    assert all(not torch.equal(before[weight], after[weight]) for weight in before)
    assert float(ratios[0].abs() + ratios[1].abs()) > 0.1  # the second comparison says something
