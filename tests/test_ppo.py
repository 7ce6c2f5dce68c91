"""PPO's formulas: against hand-computed values and a second writing, and a bandit with a known optimum."""

import math

import numpy as np
import pytest
import torch

from labkit import ppo


def drawn(seed=0, shape=(5, 7)):
    """Random numbers of a batch: (rewards, values, others, mask), rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
    mask = (torch.arange(shape[1]) < lengths).long()
    return *(torch.randn(shape, generator=generator) for _ in range(3)), mask


def test_gae_by_hand():
    """Two tokens, gamma 1, lam 0.5: delta = (0 + 2 - 1, 10 - 2), A = (1 + 0.5 x 8, 8)."""
    advantages, returns = ppo.gae(
        torch.tensor([[0.0, 10.0, 7.0]]), torch.tensor([[1.0, 2.0, 99.0]]), torch.tensor([[1, 1, 0]]), 1.0, 0.5
    )
    assert advantages.tolist() == [[5.0, 8.0, 0.0]] and returns.tolist() == [[6.0, 10.0, 0.0]]


def test_gae_is_the_weighted_sum_of_n_step_advantages():
    """A second writing, from the definition (Schulman 2016, equation 16), row by row and without a recursion."""
    rewards, values, _, mask = drawn()
    advantages, returns = ppo.gae(rewards, values, mask, 0.9, 0.8)
    for row in range(len(mask)):
        n = int(mask[row].sum())
        r, v = rewards[row, :n].double().numpy(), np.append(values[row, :n].double().numpy(), 0.0)
        for t in range(n):
            delta = [r[k] + 0.9 * v[k + 1] - v[k] for k in range(t, n)]
            wanted = sum((0.9 * 0.8) ** k * d for k, d in enumerate(delta))
            assert advantages[row, t].item() == pytest.approx(wanted, abs=1e-5)
            assert returns[row, t].item() == pytest.approx(wanted + v[t], abs=1e-5)
        assert advantages[row, n:].abs().sum() == returns[row, n:].abs().sum() == 0


def test_gae_with_lam_1_is_the_reward_to_go_less_the_value():
    rewards, values, _, mask = drawn(1)
    _, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go * mask)


def test_token_rewards_put_the_score_on_the_last_token():
    log_pi, log_ref = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, -5.0]])
    found = ppo.token_rewards(torch.tensor([3.0]), log_pi, log_ref, torch.tensor([[1, 1, 0]]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.05, 3.1, 0.0]]))


def test_policy_loss_and_clip_by_hand():
    """Ratios 1.5 and 0.5 at clip 0.2, each with either sign of the advantage: clipped where it would go on."""
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.5]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 50.0]])
    log_pi = ratio.log().requires_grad_()
    loss, clipped = ppo.policy_loss(
        log_pi, torch.zeros(1, 5), advantages, torch.tensor([[1, 1, 1, 1, 0]]), clip=0.2
    )  # fmt: skip
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4) and clipped.item() == 0.5
    loss.backward()
    assert log_pi.grad[0].tolist() == pytest.approx([0, 1.5 / 4, -0.5 / 4, 0, 0])


def test_losses_in_a_second_writing():
    log_pi, log_old, advantages, mask = drawn(2)
    values, old, returns, _ = drawn(3)
    policy, counted, value = [], [], []
    for b, t in mask.nonzero().tolist():
        ratio, advantage = math.exp(log_pi[b, t] - log_old[b, t]), advantages[b, t].item()
        policy.append(min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
        counted.append((ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0))
        near = old[b, t].item() + min(max(values[b, t].item() - old[b, t].item(), -0.3), 0.3)
        value.append(max((values[b, t].item() - returns[b, t].item()) ** 2, (near - returns[b, t].item()) ** 2) / 2)
    loss, clipped = ppo.policy_loss(log_pi, log_old, advantages, mask, 0.2)
    assert loss.item() == pytest.approx(-np.mean(policy), rel=1e-4) and clipped.item() == pytest.approx(
        np.mean(counted)
    )
    assert ppo.value_loss(values, old, returns, mask, 0.3).item() == pytest.approx(np.mean(value), rel=1e-4)


def test_whitening_looks_at_the_mask_only():
    values, _, _, mask = drawn(4)
    white = ppo.whiten(values + 100 * (1 - mask), mask)
    kept = white[mask.bool()]
    assert kept.mean().abs() < 1e-5 and kept.std(unbiased=False).item() == pytest.approx(1, abs=1e-3)
    assert white[~mask.bool()].abs().sum() == 0
    torch.testing.assert_close(ppo.whiten(5 * values + 3, mask), ppo.whiten(values, mask), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_kl_estimators_on_categorical_distributions(scale):
    """k1 and k3 have the KL as their mean, and k3 varies less; k2 is biased (Schulman 2020)."""
    generator = torch.Generator().manual_seed(0)
    pi, ref = (torch.randn(12, generator=generator).double().mul(scale).log_softmax(0) for _ in range(2))
    kl = torch.nn.functional.kl_div(ref, pi, log_target=True, reduction="sum").item()
    words = torch.multinomial(pi.exp(), 200_000, replacement=True, generator=generator)
    k1, k2, k3 = (k((pi - ref)[words]) for k in (ppo.kl_k1, ppo.kl_k2, ppo.kl_k3))
    for unbiased in (k1, k3):
        assert abs(unbiased.mean().item() - kl) < 3 * unbiased.std().item() / math.sqrt(len(words))
    for k in (ppo.kl_k1, ppo.kl_k3):
        assert (pi.exp() * k(pi - ref)).sum().item() == pytest.approx(kl, rel=1e-9)
    assert abs((pi.exp() * ppo.kl_k2(pi - ref)).sum().item() - kl) > 1e-3 * kl
    assert k3.min() >= 0 and k2.min() >= 0 > k1.min()
    assert k3.std() < k1.std() or scale == 2.0  # far from the reference ref / pi can be large


def test_entropy_log_probs_and_explained_variance():
    logits = torch.zeros(2, 3, 8)
    assert ppo.entropy(logits).allclose(torch.tensor(math.log(8)))
    assert ppo.log_probs(logits, torch.ones(2, 3, dtype=torch.long)).allclose(torch.tensor(-math.log(8)))
    returns, _, _, mask = drawn(5)
    assert ppo.explained_variance(returns, returns, mask) == 1
    assert ppo.explained_variance(torch.zeros_like(returns) + 4, returns, mask).item() == pytest.approx(0, abs=1e-5)


def test_the_kl_coefficient_follows_its_target():
    assert ppo.adapted_kl_coef(0.1, kl=6.0, target=6.0, rows=64, horizon=1000) == 0.1
    assert ppo.adapted_kl_coef(0.1, kl=6.6, target=6.0, rows=100, horizon=1000) == pytest.approx(0.1 * 1.01)
    assert ppo.adapted_kl_coef(0.1, kl=600, target=6.0, rows=100, horizon=1000) == pytest.approx(0.1 * 1.02)
    assert ppo.adapted_kl_coef(0.1, kl=0.0, target=6.0, rows=100, horizon=1000) == pytest.approx(0.1 * 0.98)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a_bandit_reaches_its_closed_form_optimum(beta):
    """Answers of one token: PPO must end at pi* = pi_ref exp(r / beta) / Z, within 0.02 total variation."""
    torch.manual_seed(0)
    arms, rows = 6, 1024
    reference = torch.log_softmax(torch.randn(arms), 0)
    score = torch.randn(arms)
    best = torch.softmax(reference + score / beta, 0)
    logits, value = reference.clone().requires_grad_(), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=0.05)
    mask, steps = torch.ones(rows, 1), 250
    for step in range(steps):
        arm = torch.multinomial(logits.detach().softmax(0), rows, replacement=True)[:, None]
        old, old_values = logits.detach().log_softmax(0)[arm], value.detach().expand(rows, 1)
        rewards = ppo.token_rewards(score[arm[:, 0]], old, reference[arm], mask, beta)
        advantages, returns = ppo.gae(rewards, old_values, mask, 1.0, 0.95)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        for _ in range(3):
            log_pi = ppo.log_probs(logits.expand(rows, 1, arms), arm)
            loss, _ = ppo.policy_loss(log_pi, old, advantages, mask, 0.2)
            loss = loss + ppo.value_loss(value.expand(rows, 1), old_values, returns, mask, 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    distance = {name: (p - best).abs().sum().item() / 2 for name, p in
                (("learned", logits.detach().softmax(0)), ("reference", reference.exp()))}  # fmt: skip
    assert distance["learned"] < 0.02 < 0.1 < distance["reference"]
