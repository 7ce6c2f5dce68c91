"""The mathematics of PPO for language models: pure functions on tensors, each with its formula and its paper.

An answer's tokens are the actions of an episode. Shapes: B answers, padded on the right to T tokens, over V words.
mask (B, T) is 1 for every token that the policy chose, its end token included, and 0 for padding. Log-probabilities,
entropies and KL are in nats. pi is the policy that trains, old the policy that sampled, ref the frozen reference.
"""

import torch


def log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log pi(y_t | x, y_<t) of the tokens chosen: logits (B, T, V), tokens (B, T) -> (B, T), in fp32."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """H_t = - sum_v pi(v) log pi(v): logits (B, T, V) -> (B, T). At 0 the policy has stopped exploring."""
    log_pi = logits.float().log_softmax(-1)
    return -(log_pi.exp() * log_pi).sum(-1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens that count: (B, T), (B, T) -> ()."""
    return (values * mask).sum() / mask.sum()


# KL(pi || ref) from samples of pi (Schulman 2020, Approximating KL divergence). log_ratio = log pi - log ref at the
# sampled token. Its mean under pi is the KL by definition.


def kl_k1(log_ratio: torch.Tensor) -> torch.Tensor:
    """k1 = log(pi / ref). Unbiased, of high variance, negative for many tokens."""
    return log_ratio


def kl_k2(log_ratio: torch.Tensor) -> torch.Tensor:
    """k2 = (log(pi / ref))^2 / 2. Biased, of low variance, never negative."""
    return log_ratio.square() / 2


def kl_k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """k3 = ref / pi - 1 - log(ref / pi). Unbiased, never negative: ref / pi - 1 has mean 0 and cancels noise."""
    return (-log_ratio).exp() - 1 + log_ratio


def token_rewards(
    scores: torch.Tensor, log_pi: torch.Tensor, log_ref: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """r_t = -kl_coef (log pi - log ref)_t, plus the answer's score at its last token.

    scores (B,), the rest (B, T) -> (B, T). With gamma = 1 they sum to score - kl_coef log(pi(y) / ref(y)), whose
    maximum is pi* = ref exp(score / kl_coef) / Z (Ziegler et al. 2019, equation 2; Stiennon et al. 2020).
    """
    rewards = -kl_coef * kl_k1(log_pi - log_ref) * mask
    last = mask.sum(1).long() - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation: (B, T) each -> advantages (B, T), returns (B, T).

    delta_t = r_t + gamma V_{t+1} - V_t        how much better than expected one step was
    A_t     = delta_t + gamma lam A_{t+1}      lam = 0: one step, biased by V; lam = 1: the whole rest, noisy
    return_t = A_t + V_t                       what V_t is to learn

    After the last token nothing follows: V = A = 0 (Schulman et al. 2016, equations 11 and 16).
    """
    advantages, after = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    values = values * mask
    for t in reversed(range(values.shape[1])):
        following = values[:, t + 1] if t + 1 < values.shape[1] else torch.zeros_like(after)
        delta = rewards[:, t] + gamma * following - values[:, t]
        after = advantages[:, t] = (delta + gamma * lam * after) * mask[:, t]
    return advantages, advantages + values


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(values - mean) / standard deviation over the tokens that count: (B, T) -> (B, T), 0 in the padding.

    It makes the step size independent of the reward's scale (Engstrom et al. 2020 on what such details decide).
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def policy_loss(
    log_pi: torch.Tensor, log_old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate: (B, T) each -> (loss (), share of tokens that the clip cut off ()).

    ratio = pi / old,  L = - mean_t min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)

    A token whose probability has already moved by more than `clip` in the direction that its advantage asks for gets
    no gradient (Schulman et al. 2017, equation 7).
    """
    ratio = (log_pi - log_old).exp()
    free, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return -masked_mean(torch.min(free, clipped), mask), masked_mean((clipped < free).float(), mask)


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """L = mean_t max((V - return)^2, (V_clipped - return)^2) / 2,  V_clipped within `clip` of the old value: -> ().

    (B, T) each. The value's counterpart of the policy's clip, from the code of Schulman et al. 2017.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return masked_mean(torch.max((values - returns).square(), (clipped - returns).square()), mask) / 2


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - Var[return - V] / Var[return] over the tokens that count: 1 is perfect, 0 a constant: -> ()."""
    rest = returns - values
    spread, left = (masked_mean((x - masked_mean(x, mask)).square(), mask) for x in (returns, rest))
    return 1 - left / spread.clamp(min=1e-8)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, rows: int, horizon: int) -> float:
    """The next kl_coef, so that the KL per answer approaches `target` (Ziegler et al. 2019, section 2.2).

    error = clip(kl / target - 1, -0.2, 0.2),  kl_coef <- kl_coef (1 + error rows / horizon)

    rows: answers sampled since the last change. horizon: answers over which a full error changes it by about a fifth.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * rows / horizon)
