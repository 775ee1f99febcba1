"""The mathematics of GRPO against numbers computed by hand and against TRL 1.16's formulas in plain Python floats."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from bounds import EXACT

from rethinker.grpo import (
    check_finite,
    group_advantages,
    kl_penalty,
    masked_aggregate,
    merge_stats,
    nll_loss,
    policy_loss,
    truncated_importance_weights,
)

pytestmark = pytest.mark.numerics

CLIP = {"clip_low": 0.2, "clip_high": 0.35}


def test_advantages_by_hand():
    # One success in four: mean 1/4, Bessel's std sqrt((9/16 + 3/16) / 3) = 1/2, so 3/2 and three times -1/2.
    advantages_PG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), eps=0.0)
    assert advantages_PG.tolist() == [[1.5, -0.5, -0.5, -0.5]]
    assert group_advantages(torch.tensor([[1, 0, 0, 0]]), scale="none").tolist() == [[0.75, -0.25, -0.25, -0.25]]
    with_eps = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), eps=0.5)
    assert with_eps.tolist() == [[0.75, -0.25, -0.25, -0.25]]
    # TRL's eps by default: 0.75 / (0.5 + 1e-6), in float64.
    assert group_advantages(torch.tensor([[1.0, 0, 0, 0]]).double())[0, 0].item() == pytest.approx(1.499997, abs=1e-9)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_unanimous_groups_are_exactly_zero_where_float_arithmetic_is_not(scale):
    rewards_PG = torch.full((3, 8), 0.1)
    naive = (rewards_PG - rewards_PG.mean(1, keepdim=True)) / (rewards_PG.std(1, keepdim=True) + 1e-6)
    assert naive.abs().max() > 1e-4  # what Selective Sample Replay would store as signal
    assert (group_advantages(rewards_PG, scale=scale) == 0.0).all()
    mixed = group_advantages(torch.tensor([[0.1] * 8, [1.0] + [0.0] * 7]), scale=scale)
    assert (mixed[0] == 0.0).all() and (mixed[1] != 0.0).all()


def test_advantages_reject_bad_input():
    with pytest.raises(ValueError, match="at least 2 responses"):
        group_advantages(torch.ones(4, 1))
    with pytest.raises(ValueError, match="shape"):
        group_advantages(torch.ones(4))
    with pytest.raises(ValueError, match=r"rows\) \[1\]"):
        group_advantages(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]))
    with pytest.raises(ValueError, match="scale must be one of std, none"):
        group_advantages(torch.ones(1, 2), scale="batch")  # type: ignore[arg-type]


def test_policy_loss_by_hand():
    # Ratios 2 and 1/2. With A = 1: min(2, 1.35) = 1.35 and min(.5, .8) = .5.
    # With A = -1: min(-2, -1.35) = -2 and min(-.5, -.8) = -.8.
    logprobs_BT = torch.tensor([[math.log(2.0), math.log(0.5)]], dtype=torch.float64)
    behavior_BT, mask_BT = torch.zeros_like(logprobs_BT), torch.ones(1, 2, dtype=torch.bool)
    up, stats = policy_loss(logprobs_BT, behavior_BT, torch.tensor([1.0]), mask_BT, **CLIP)
    assert up.item() == pytest.approx(-(1.35 + 0.5) / 2)
    assert stats["clipped_high"] == 1 and stats["clipped_low"] == 0 and stats["clipped_dual"] == 0
    half, stats = policy_loss(logprobs_BT, behavior_BT, torch.tensor([0.5]), mask_BT, dual_clip=1.5, **CLIP)
    assert half.item() == pytest.approx(up.item() / 2)
    assert stats["clipped_low"] == stats["clipped_dual"] == 0  # they act where A < 0
    for advantage in (0.5, -0.5):  # ratios inside the range: 1.1 and 0.9
        inside_BT = torch.tensor([[1.1, 0.9]], dtype=torch.float64).log()
        _, stats = policy_loss(inside_BT, behavior_BT, torch.tensor([advantage]), mask_BT, **CLIP)
        assert stats["clipped_low"] == stats["clipped_high"] == 0
        assert stats["approx_kl_sum"].item() == pytest.approx(1.1 - 1 - math.log(1.1) + 0.9 - 1 - math.log(0.9))
    _, stats = policy_loss(logprobs_BT, behavior_BT, torch.tensor([0.0]), mask_BT, dual_clip=1.5, **CLIP)
    assert stats["clipped_low"] == stats["clipped_high"] == stats["clipped_dual"] == 0  # no gain, nothing clipped
    down, stats = policy_loss(logprobs_BT, behavior_BT, torch.tensor([-1.0]), mask_BT, **CLIP)
    assert down.item() == pytest.approx((2.0 + 0.8) / 2)
    assert stats["clipped_high"] == 0 and stats["clipped_low"] == 1
    dual, stats = policy_loss(logprobs_BT, behavior_BT, torch.tensor([-1.0]), mask_BT, dual_clip=1.5, **CLIP)
    assert dual.item() == pytest.approx((1.5 + 0.8) / 2)
    assert stats["clipped_dual"] == 1
    assert stats["tokens"] == 2 and stats["clipped_low"] == 1 and stats["clipped_high"] == 0
    assert stats["ratio_sum"].item() == pytest.approx(2.5) and stats["ratio_max"].item() == pytest.approx(2.0)
    assert stats["approx_kl_sum"].item() == pytest.approx(2 - 1 - math.log(2) + 0.5 - 1 + math.log(2))


def trl_loss(lp, old, advantages, mask, *, loss_type, level, objective, delta, weights, max_length, anchor):
    """TRL 1.16.0's loss of one micro-batch on one rank, token by token in Python floats, without accumulation.

    ``anchor``: the log-probs behind CISPO's detach. CISPO's lower bound is MiniMax-M1's; TRL has the upper one only,
    which is ``clip_low=1`` here.
    """
    eps, eps_high = CLIP["clip_low"], CLIP["clip_high"]
    samples = []
    for i, advantage in enumerate(advantages):
        losses = []
        n = max(sum(mask[i]), 1)
        for t in range(len(lp[i])):
            if level == "token":
                ratio, fixed = math.exp(lp[i][t] - old[i][t]), math.exp(anchor[i][t] - old[i][t])
            else:
                ratio = math.exp(sum((a - b) * m for a, b, m in zip(lp[i], old[i], mask[i], strict=True)) / n)
                fixed = math.exp(sum((a - b) * m for a, b, m in zip(anchor[i], old[i], mask[i], strict=True)) / n)
            if objective == "cispo":
                value = -min(max(fixed, 1 - eps), 1 + eps_high) * advantage * lp[i][t]
            else:
                first = ratio if delta is None else min(ratio, delta)
                value = -min(first * advantage, min(max(ratio, 1 - eps), 1 + eps_high) * advantage)
            losses.append(value * (1.0 if weights is None else weights[i][t]) * mask[i][t])
        samples.append(sum(losses))
    lengths = [sum(row) for row in mask]
    if loss_type == "grpo":
        return sum(s / max(n, 1) for s, n in zip(samples, lengths, strict=True)) / len(samples)
    if loss_type == "dr_grpo":
        return sum(samples) / (len(samples) * max_length)
    return sum(samples) / max(sum(lengths), 1)  # bnpo; dapo too where the micro-batch is the batch


TRL_NAMES = {"grpo": "sequence_mean", "bnpo": "token_mean", "dapo": "token_mean", "dr_grpo": "constant"}
COMBINATIONS = [
    (loss_type, level, objective, delta, weighted)
    for loss_type, level, (objective, delta), weighted in itertools.product(
        TRL_NAMES, ["token", "sequence"], [("clip", None), ("clip", 1.6), ("cispo", None)], [False, True]
    )
]


@pytest.mark.parametrize(("loss_type", "level", "objective", "delta", "weighted"), COMBINATIONS)
def test_loss_and_gradient_equal_trl(loss_type, level, objective, delta, weighted):
    rng = random.Random(3)
    lengths, width, max_length = [5, 2, 4, 0, 1], 5, 7
    lp = [[rng.gauss(-1.5, 0.5) for _ in range(width)] for _ in lengths]
    old = [[value - rng.gauss(0.0, 0.4) for value in row] for row in lp]
    mask = [[int(t < n) for t in range(width)] for n in lengths]
    mask[0][2] = 0  # a forced token inside
    advantages = [1.2, -0.7, -1.5, 2.0, 0.8]
    weights = [[rng.uniform(0.5, 2.0) for _ in range(width)] for _ in lengths] if weighted else None

    def reference(row):
        return trl_loss(
            row,
            old,
            advantages,
            mask,
            loss_type=loss_type,
            level=level,
            objective=objective,
            delta=delta,
            weights=weights,
            max_length=max_length,
            anchor=lp,
        )

    logprobs_BT = torch.tensor(lp, dtype=torch.float64, requires_grad=True)
    loss, _ = policy_loss(
        logprobs_BT,
        torch.tensor(old, dtype=torch.float64),
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(mask),
        **CLIP,
        aggregation=TRL_NAMES[loss_type],
        ratio=level,
        objective=objective,
        dual_clip=delta,
        importance_weights_BT=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        max_length=max_length,
    )
    assert loss.item() == pytest.approx(reference(lp), abs=1e-14)
    (gradient_BT,) = torch.autograd.grad(loss, logprobs_BT)
    step = 1e-6
    for i, t in itertools.product(range(len(lengths)), range(width)):
        values = []
        for sign in (1, -1):
            moved = [list(row) for row in lp]
            moved[i][t] += sign * step
            values.append(reference(moved))
        assert gradient_BT[i, t].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8), (i, t)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("objective", ["clip", "cispo"])
def test_accumulation_equals_one_big_batch(aggregation, ratio, objective):
    """Uneven micro-batches with a sample that has no token at all; every term of the trainer's loss."""
    generator = torch.Generator().manual_seed(0)
    B, T, V = 11, 13, 17
    features_BTV = torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    targets_BT1 = torch.randint(V, (B, T, 1), generator=generator)
    mask_BT = torch.arange(T) < torch.tensor([13, 1, 7, 0, 5, 12, 2, 9, 3, 13, 6])[:, None]
    nll_mask_BT = mask_BT & (torch.arange(B)[:, None] % 3 == 0) & (torch.arange(T) > 1)
    advantages_B = torch.randn(B, generator=generator)
    noise_BT = 0.3 * torch.randn(B, T, generator=generator, dtype=torch.float64)
    weight_VV = torch.randn(V, V, generator=generator, dtype=torch.float64)
    shares = {"aggregation": aggregation, "global_sequences": B, "global_tokens": int(mask_BT.sum()), "max_length": 20}

    def run(micro_batches):
        weight = weight_VV.clone().requires_grad_()
        total, stats = 0.0, []
        for rows in micro_batches:
            logprobs_BTV = torch.log_softmax(features_BTV[rows] @ weight, -1)
            lp_BT = logprobs_BTV.gather(-1, targets_BT1[rows])[..., 0]
            loss, part = policy_loss(
                lp_BT,
                lp_BT.detach() - noise_BT[rows],
                advantages_B[rows],
                mask_BT[rows],
                **CLIP,
                ratio=ratio,
                objective=objective,
                **shares,
            )
            loss = loss + 0.1 * masked_aggregate(kl_penalty(lp_BT, lp_BT.detach() + 0.2), mask_BT[rows], **shares)
            entropy_BT = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)
            loss = loss - 0.01 * masked_aggregate(entropy_BT, mask_BT[rows], **shares)
            loss = loss + 0.05 * nll_loss(lp_BT, nll_mask_BT[rows], kept_tokens=int(nll_mask_BT.sum()))
            loss = loss + 0.3 * nll_loss(lp_BT, nll_mask_BT[rows], scale="batch", **shares)
            loss.backward()
            total += loss.item()
            stats.append(part)
        return total, weight.grad, merge_stats(stats)

    big_loss, big_gradient, big_stats = run([slice(0, B)])
    loss, gradient, stats = run([slice(0, 3), slice(3, 4), slice(4, 10), slice(10, 11)])
    assert loss == pytest.approx(big_loss, rel=EXACT)
    assert (gradient - big_gradient).abs().max() <= EXACT * big_gradient.abs().max()
    assert big_gradient.abs().max() > 1e-3
    for name, value in big_stats.items():
        assert stats[name].item() == pytest.approx(value.item(), rel=EXACT, abs=EXACT), name


def test_default_denominators_are_the_batch_itself():
    values_BT = torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_aggregate(values_BT, mask_BT, "sequence_mean").item() == (2.0 + 5.0) / 2
    assert masked_aggregate(values_BT, mask_BT, "token_mean").item() == 9.0 / 3
    assert masked_aggregate(values_BT[1:], mask_BT[1:], "token_mean").item() == 5.0
    assert masked_aggregate(values_BT, mask_BT, "constant", max_length=3).item() == 9.0 / 6
    assert masked_aggregate(values_BT, mask_BT, "constant", max_length=1).item() == 9.0 / 2
    assert masked_aggregate(values_BT, mask_BT, "token_mean", global_tokens=30).item() == pytest.approx(0.3)
    assert masked_aggregate(values_BT, mask_BT, "sequence_mean", global_sequences=70).item() == pytest.approx(0.1)


def test_gspo_gradient_has_its_closed_form():
    """Inside the clip range dL/dlogp_t = -s A / (B n): the same for each of the n tokens, with s the sequence ratio."""
    difference_BT = torch.tensor([[0.1, -0.3, 0.4, 0.2], [-0.2, 0.1, 99.0, 99.0]], dtype=torch.float64)
    logprobs_BT = torch.full((2, 4), -1.0, dtype=torch.float64, requires_grad=True)
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    advantages_B = torch.tensor([1.5, -0.5], dtype=torch.float64)
    loss, _ = policy_loss(
        logprobs_BT, logprobs_BT.detach() - difference_BT, advantages_B, mask_BT, ratio="sequence", **CLIP
    )
    (gradient_BT,) = torch.autograd.grad(loss, logprobs_BT)
    s = [math.exp(0.4 / 4), math.exp(-0.1 / 2)]
    expected = [[-s[0] * 1.5 / (2 * 4)] * 4, [s[1] * 0.5 / (2 * 2)] * 2 + [0.0] * 2]
    torch.testing.assert_close(gradient_BT, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert loss.item() == pytest.approx(-(s[0] * 1.5 - s[1] * 0.5) / 2)


@pytest.mark.parametrize("objective", ["clip", "cispo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_padding_may_hold_anything(objective, ratio, aggregation):
    clean_BT = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -3.0, -2.0]])
    mask_BT = torch.tensor([[True, True, False], [False, False, False]])
    dirty_BT = clean_BT.masked_fill(~mask_BT, float("nan"))
    results = []
    for values_BT in (clean_BT, dirty_BT):
        logprobs_BT = values_BT.clone().requires_grad_()
        loss, stats = policy_loss(
            logprobs_BT,
            values_BT - 0.1,
            torch.tensor([1.0, -1.0]),
            mask_BT,
            aggregation=aggregation,
            ratio=ratio,
            objective=objective,
            importance_weights_BT=truncated_importance_weights(values_BT, values_BT, mask_BT, cap=2.0),
            max_length=3,
            **CLIP,
        )
        loss = loss + nll_loss(logprobs_BT, mask_BT)
        loss.backward()
        results.append((loss.item(), logprobs_BT.grad.tolist(), {k: v.item() for k, v in stats.items()}))
    assert results[0] == results[1]
    assert math.isfinite(results[0][0]) and results[0][1][1] == [0.0] * 3


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_nothing_to_train_on_is_zero_with_a_gradient(aggregation):
    logprobs_BT = torch.zeros(2, 3, requires_grad=True)
    mask_BT = torch.zeros(2, 3, dtype=torch.bool)
    loss, stats = policy_loss(
        logprobs_BT, logprobs_BT.detach(), torch.ones(2), mask_BT, aggregation=aggregation, max_length=3, **CLIP
    )
    (loss + nll_loss(logprobs_BT, mask_BT, kept_tokens=0)).backward()
    assert loss.item() == 0.0 and (logprobs_BT.grad == 0).all()
    assert all(value == 0.0 for value in stats.values())


def test_a_batch_without_positions_has_finite_statistics():
    empty_BT = torch.zeros(2, 0)
    loss, stats = policy_loss(empty_BT, empty_BT, torch.ones(2), empty_BT, **CLIP)
    assert loss.item() == 0.0 and all(value == 0.0 for value in stats.values())


def test_kl_estimators_by_hand_and_in_the_mean():
    logprobs_BT = torch.tensor([[math.log(0.5)]], dtype=torch.float64)
    reference_BT = torch.tensor([[math.log(0.25)]], dtype=torch.float64)
    assert kl_penalty(logprobs_BT, reference_BT, "k1").item() == pytest.approx(math.log(2))
    assert kl_penalty(logprobs_BT, reference_BT, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_penalty(logprobs_BT, reference_BT, "k3").item() == pytest.approx(0.5 + math.log(2) - 1)
    # Weighted by the policy's probabilities k1 and k3 are KL(p || q) exactly; the gradient of k2 is that of the KL.
    logits_V = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    p_1V, q_1V = torch.log_softmax(logits_V, -1)[None], torch.log(torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64))
    kl = (p_1V.exp() * (p_1V - q_1V)).sum()
    for estimator in ("k1", "k3"):
        assert (p_1V.exp() * kl_penalty(p_1V, q_1V, estimator)).sum().item() == pytest.approx(kl.item(), abs=1e-14)
    (true,) = torch.autograd.grad(kl, logits_V, retain_graph=True)
    (k2,) = torch.autograd.grad((p_1V.exp().detach() * kl_penalty(p_1V, q_1V, "k2")).sum(), logits_V)
    torch.testing.assert_close(k2, true)


def test_importance_weights_are_capped_detached_and_one_outside_the_mask():
    trainer_BT = torch.tensor([[math.log(0.9), math.log(0.2), math.log(0.5), -9.0]], requires_grad=True)
    rollout_BT = torch.tensor([[math.log(0.1), math.log(0.4), math.log(0.5), 0.0]], requires_grad=True)
    mask_BT = torch.tensor([[1, 1, 1, 0]])
    weights_BT = truncated_importance_weights(trainer_BT, rollout_BT, mask_BT, cap=2.0)
    torch.testing.assert_close(weights_BT, torch.tensor([[2.0, 0.5, 1.0, 1.0]]))
    assert not weights_BT.requires_grad
    capped_BT = truncated_importance_weights(trainer_BT, rollout_BT, mask_BT, cap=1.0)
    torch.testing.assert_close(capped_BT, torch.tensor([[1.0, 0.5, 1.0, 1.0]]))
    with pytest.raises(ValueError, match="cap"):
        truncated_importance_weights(trainer_BT, rollout_BT, mask_BT, cap=0.0)


def test_nll_is_the_mean_over_its_tokens():
    logprobs_BT = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]])
    nll_mask_BT = torch.tensor([[False, True, True], [False, False, False]])
    assert nll_loss(logprobs_BT, nll_mask_BT).item() == 3.0
    assert nll_loss(logprobs_BT, nll_mask_BT, kept_tokens=12).item() == 0.5


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sequence_mean", (3.0 + 8.0) / 10),  # samples 0 and 2 of ten: the means of 2 and 4, and of 8
        ("token_mean", (2.0 + 4.0 + 8.0) / 50),
        ("constant", (2.0 + 4.0 + 8.0) / (10 * 20)),
    ],
)
def test_nll_on_the_scale_of_the_batch(aggregation, expected):
    logprobs_BT = torch.tensor([[-1.0, -2.0, -4.0], [-7.0, -7.0, -7.0], [-8.0, -16.0, -32.0]])
    nll_mask_BT = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    shares = {"aggregation": aggregation, "global_sequences": 10, "global_tokens": 50, "max_length": 20}
    found = [nll_loss(logprobs_BT, nll_mask_BT, scale="batch", kept_tokens=kept, **shares) for kept in (3, 999)]
    assert [value.item() for value in found] == [pytest.approx(expected, rel=1e-6)] * 2
    # Another kept sample adds its share and leaves those of the others alone.
    alone = [nll_loss(logprobs_BT[i : i + 1], nll_mask_BT[i : i + 1], scale="batch", **shares).item() for i in (0, 2)]
    assert sum(alone) == pytest.approx(expected, rel=1e-6)


def test_weights_of_a_kept_token_as_the_docstring_has_them():
    """One kept sample of 512, of 800 tokens each, 300 of them under the NLL: 68 times a policy token, or 0.13 times."""
    samples, tokens, covered = 512, 800, 300
    policy = 1 / (samples * tokens)  # sequence_mean, abs(A) = 1
    logprobs_BT = torch.zeros(1, tokens, dtype=torch.float64, requires_grad=True)
    mask_BT = torch.arange(tokens)[None] >= tokens - covered
    weights = {}
    for scale in ("kept", "batch"):
        loss = 0.05 * nll_loss(logprobs_BT, mask_BT, scale=scale, kept_tokens=covered, global_sequences=samples)
        (gradient,) = torch.autograd.grad(loss, logprobs_BT)
        weights[scale] = float(-gradient[0, -1]) / policy
        assert gradient[0, 0] == 0.0
    assert weights == {"kept": pytest.approx(68.27, abs=0.01), "batch": pytest.approx(0.1333, abs=1e-4)}
    # The official code: a micro-batch of 4 with one kept sample, all of its tokens, one of 512 / 4 micro-batches.
    assert 0.05 / tokens / (samples / 4) / policy == pytest.approx(0.2)


def test_half_precision_is_computed_in_float32():
    logprobs_BT = torch.full((1, 1000), -1.0, dtype=torch.bfloat16)
    loss, stats = policy_loss(logprobs_BT, logprobs_BT, torch.ones(1), torch.ones(1, 1000), **CLIP)
    assert loss.dtype == torch.float32 and loss.item() == -1.0 and stats["tokens"].item() == 1000


def test_policy_loss_rejects_bad_input():
    logprobs_BT, advantages_B, mask_BT = torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3)
    with pytest.raises(ValueError, match="behavior_logprobs_BT must have shape"):
        policy_loss(logprobs_BT, torch.zeros(2, 4), advantages_B, mask_BT, **CLIP)
    with pytest.raises(ValueError, match="advantages_B"):
        policy_loss(logprobs_BT, logprobs_BT, torch.zeros(3), mask_BT, **CLIP)
    with pytest.raises(ValueError, match="max_length"):
        policy_loss(logprobs_BT, logprobs_BT, advantages_B, mask_BT, aggregation="constant", **CLIP)
    with pytest.raises(ValueError, match="aggregation must be one of"):
        policy_loss(logprobs_BT, logprobs_BT, advantages_B, mask_BT, aggregation="mean", **CLIP)
    with pytest.raises(ValueError, match="dual_clip"):
        policy_loss(logprobs_BT, logprobs_BT, advantages_B, mask_BT, dual_clip=1.0, **CLIP)
    with pytest.raises(ValueError, match="dual_clip"):
        policy_loss(logprobs_BT, logprobs_BT, advantages_B, mask_BT, dual_clip=3.0, objective="cispo", **CLIP)
    with pytest.raises(ValueError, match="clip_low"):
        policy_loss(logprobs_BT, logprobs_BT, advantages_B, mask_BT, clip_low=-0.1, clip_high=0.2)


def test_a_clip_range_of_nothing():
    """Bounds of 0 are allowed: whatever would leave 1 in the direction of its gain is clipped there."""
    logprobs_BT, zeros_BT = torch.tensor([[0.5, -0.5]]), torch.zeros(1, 2)
    loss, stats = policy_loss(logprobs_BT, zeros_BT, torch.ones(1), torch.ones(1, 2), clip_low=0.0, clip_high=0.0)
    assert loss.item() == pytest.approx(-(1.0 + math.exp(-0.5)) / 2) and stats["clipped_high"] == 1


@pytest.mark.parametrize("objective", ["clip", "cispo"])
def test_gradients_reach_the_policy_alone(objective):
    reference_BT = torch.zeros(1, 2, requires_grad=True)
    assert not any(kl_penalty(torch.ones(1, 2), reference_BT, name).requires_grad for name in ("k1", "k2", "k3"))
    constants = [torch.full(shape, 0.5, requires_grad=True) for shape in ((1, 2), (1,), (1, 2))]
    behavior_BT, advantages_B, weights_BT = constants
    loss, _ = policy_loss(
        torch.ones(1, 2),
        behavior_BT,
        advantages_B,
        torch.ones(1, 2),
        objective=objective,
        importance_weights_BT=weights_BT,
        **CLIP,
    )
    assert not loss.requires_grad


def test_unknown_names_and_other_shapes_are_errors():
    """Nothing is broadcast, and a misspelt option is not the default."""
    values_BT, mask_BT = torch.zeros(2, 3), torch.ones(2, 3)
    for name in ("ratio", "objective"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            policy_loss(values_BT, values_BT, torch.zeros(2), mask_BT, **CLIP, **{name: "tokens"})
    with pytest.raises(ValueError, match="estimator must be one of"):
        kl_penalty(values_BT, values_BT, "k4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reference_logprobs_BT must have shape"):
        kl_penalty(values_BT, values_BT[:1])
    with pytest.raises(ValueError, match="max_length"):
        masked_aggregate(values_BT, mask_BT, "constant", max_length=0)
    with pytest.raises(ValueError, match="mask_BT must have shape"):
        masked_aggregate(values_BT, mask_BT[:1], "token_mean")
    with pytest.raises(ValueError, match=r"expected tensors of shape \(samples, positions\)"):
        nll_loss(values_BT[0], mask_BT[0])
    with pytest.raises(ValueError, match="rollout_logprobs_BT must have shape"):
        truncated_importance_weights(values_BT, values_BT[:1], mask_BT, cap=2.0)
    with pytest.raises(ValueError, match="importance_weights_BT must have shape"):
        policy_loss(values_BT, values_BT, torch.zeros(2), mask_BT, **CLIP, importance_weights_BT=torch.ones(2, 1))


def test_check_finite_names_the_place():
    check_finite(torch.tensor(1.0), "step 3")
    with pytest.raises(FloatingPointError, match="step 3"):
        check_finite(torch.tensor(float("nan")), "step 3")
