"""GRPO as pure functions from tensors to tensors: group advantages, ratios, losses, KL.

Differs from arXiv:2504.08837 in:
- the standard deviation of a group has Bessel's correction (divide by G - 1), as in TRL; the paper does not say;
- a unanimous group has advantages of exactly 0.0, decided by ``max == min`` rather than float arithmetic, because
  Selective Sample Replay asks for ``abs(A) > 0``: float noise divided by ``eps`` would be stored as signal;
- clip-higher (DAPO), dual clip, GSPO's sequence ratio, CISPO, KL to a reference and truncated importance sampling are
  options which the paper does not use; the official code has clip-higher (0.2 / 0.35) and no division by std.

Shapes: ``P`` prompts, ``G`` responses per prompt, ``B`` samples of a (micro-)batch, ``T`` response positions
(right-padded). Log-probs are in nats. Masks are True (or 1) where a token counts; values where the mask is False, even
NaN, change neither the loss nor its gradient.

Denominators are global. Every loss here is *this micro-batch's share* of the loss of the whole optimiser batch: the
shares of all micro-batches of all ranks add up to the loss of one big batch, and so do the gradients. Hence no
division by the number of accumulation steps, and where gradients are averaged over ranks (DDP, FSDP) the trainer
multiplies its share by the number of ranks.

Nothing here tests for NaN along the way: that would be one device synchronisation per call. The trainer calls
``check_finite`` on the loss it is about to differentiate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

Scale = Literal["std", "none"]
Aggregation = Literal["sequence_mean", "token_mean", "constant"]
Ratio = Literal["token", "sequence"]
Objective = Literal["clip", "cispo"]
KLEstimator = Literal["k1", "k2", "k3"]
NllScale = Literal["kept", "batch"]


def group_advantages(rewards_PG: Tensor, scale: Scale = "std", eps: float = 1e-6) -> Tensor:
    """Advantages (P, G) of rewards (P, G): A = (r - mean) / (std + eps) within each row.

    ``scale="std"`` is the paper's (std with Bessel's correction, as TRL), ``"none"`` omits the division (Dr. GRPO,
    official code). A row of identical rewards gives exactly 0.0. Integer and boolean rewards are converted to float32.
    Raises ValueError for anything but (P, G), for G < 2 (a group of one has no baseline) and for non-finite rewards.
    """
    _check_choice("scale", scale, Scale)
    if rewards_PG.ndim != 2:
        raise ValueError(f"rewards_PG must have shape (prompts, responses per prompt), got {tuple(rewards_PG.shape)}")
    if rewards_PG.shape[1] < 2:
        raise ValueError(
            f"group_advantages needs at least 2 responses per prompt, got {rewards_PG.shape[1]}: a single response has"
            " no group to be compared with; increase the number of responses per prompt"
        )
    rewards_PG = rewards_PG if rewards_PG.is_floating_point() else rewards_PG.float()
    if not bool(torch.isfinite(rewards_PG).all()):
        rows = (~torch.isfinite(rewards_PG)).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"rewards must be finite; prompts (rows) {rows} have NaN or infinite rewards")
    advantages_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if scale == "std":
        advantages_PG = advantages_PG / (rewards_PG.std(dim=1, correction=1, keepdim=True) + eps)
    unanimous_P1 = rewards_PG.amax(dim=1, keepdim=True) == rewards_PG.amin(dim=1, keepdim=True)
    return advantages_PG.masked_fill(unanimous_P1, 0.0)


def masked_aggregate(
    values_BT: Tensor,
    mask_BT: Tensor,
    aggregation: Aggregation,
    *,
    global_sequences: float | None = None,
    global_tokens: float | None = None,
    max_length: float | None = None,
) -> Tensor:
    """This micro-batch's share of the batch's average of a per-token quantity: the only aggregation in the library.

    - ``"sequence_mean"`` (GRPO): sum over samples of the mean over the sample's tokens, / ``global_sequences``
    - ``"token_mean"`` (DAPO): sum over all tokens, / ``global_tokens``
    - ``"constant"`` (Dr. GRPO): sum over all tokens, / (``global_sequences`` * ``max_length``)

    ``global_sequences``: samples of the whole optimiser batch (all ranks, all micro-batches; empty ones count);
    ``global_tokens``: True entries of all its masks; ``max_length``: the token limit of a response, needed by
    ``"constant"``. By default the batch is this tensor. A sample with an empty mask adds 0.
    """
    _check_choice("aggregation", aggregation, Aggregation)
    _check_shapes(values_BT, mask_BT=mask_BT)
    mask_BT = mask_BT.bool()
    values_BT = torch.where(mask_BT, at_least_float32(values_BT), 0.0)
    sequences = _denominator("global_sequences", mask_BT.shape[0] if global_sequences is None else global_sequences)
    if aggregation == "sequence_mean":
        return (values_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)).sum() / sequences
    if aggregation == "token_mean":
        if global_tokens is None:
            return values_BT.sum() / mask_BT.sum().clamp(min=1)
        return values_BT.sum() / _denominator("global_tokens", global_tokens)
    if max_length is None or max_length <= 0:
        raise ValueError(f'aggregation "constant" divides by max_length (tokens, > 0), got {max_length}')
    return values_BT.sum() / (sequences * max_length)


def policy_loss(
    logprobs_BT: Tensor,
    behavior_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    aggregation: Aggregation = "sequence_mean",
    ratio: Ratio = "token",
    objective: Objective = "clip",
    dual_clip: float | None = None,
    importance_weights_BT: Tensor | None = None,
    max_length: float | None = None,
    global_sequences: float | None = None,
    global_tokens: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped policy loss (scalar, this micro-batch's share) and its statistics.

    rho = exp(logp - behavior_logp); per token L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A).

    - ``ratio="sequence"`` (GSPO): one rho per sample, exp(mean over its tokens of logp - behavior_logp), differentiated
      through as it stands
    - ``objective="cispo"`` (MiniMax-M1): L = -stop_gradient(clip(rho)) A logp; ``clip_low=1``: no lower bound
    - ``dual_clip`` c > 1: where A < 0, L is at most -c A (TRL's ``delta``); not with ``"cispo"``
    - ``importance_weights_BT``: constant factors of the per-token loss, see ``truncated_importance_weights``
    - ``aggregation`` and the denominators: see ``masked_aggregate``

    The statistics are detached scalars fit for reduction over micro-batches and ranks: keys that end in ``_max`` by
    maximum, all others by sum (``merge_stats``); means are then sums over ``tokens``.
    """
    _check_choice("ratio", ratio, Ratio)
    _check_choice("objective", objective, Objective)
    _check_shapes(logprobs_BT, behavior_logprobs_BT=behavior_logprobs_BT, mask_BT=mask_BT)
    if advantages_B.shape != logprobs_BT.shape[:1]:
        raise ValueError(f"advantages_B must have shape ({logprobs_BT.shape[0]},), got {tuple(advantages_B.shape)}")
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low and clip_high must be >= 0, got {clip_low} and {clip_high}")
    if dual_clip is not None and (dual_clip <= 1 or objective == "cispo"):
        raise ValueError(f'dual_clip must be > 1 and needs objective "clip", got {dual_clip} with "{objective}"')

    mask_BT = mask_BT.bool()
    logprobs_BT = torch.where(mask_BT, at_least_float32(logprobs_BT), 0.0)
    behavior_logprobs_BT = torch.where(mask_BT, behavior_logprobs_BT.detach().to(logprobs_BT.dtype), 0.0)
    advantages_B1 = advantages_B.detach().to(logprobs_BT.dtype)[:, None]

    log_ratio_BT = logprobs_BT - behavior_logprobs_BT
    if ratio == "sequence":
        lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio_BT = (log_ratio_BT.sum(dim=1, keepdim=True) / lengths_B1).expand_as(mask_BT)
    ratio_BT = log_ratio_BT.exp()
    clipped_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)

    if objective == "cispo":
        gain_BT = clipped_BT.detach() * advantages_B1 * logprobs_BT
    else:
        gain_BT = torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
        if dual_clip is not None:
            gain_BT = torch.where(advantages_B1 < 0, torch.maximum(gain_BT, dual_clip * advantages_B1), gain_BT)
    if importance_weights_BT is not None:
        _check_shapes(logprobs_BT, importance_weights_BT=importance_weights_BT)
        gain_BT = gain_BT * torch.where(mask_BT, importance_weights_BT.detach().to(gain_BT.dtype), 1.0)

    loss = masked_aggregate(
        -gain_BT,
        mask_BT,
        aggregation,
        global_sequences=global_sequences,
        global_tokens=global_tokens,
        max_length=max_length,
    )
    with torch.no_grad():
        below_BT, above_BT = mask_BT & (ratio_BT < 1.0 - clip_low), mask_BT & (ratio_BT > 1.0 + clip_high)
        if objective == "clip":  # the pessimistic minimum lets a clip act on one side only
            below_BT, above_BT = below_BT & (advantages_B1 < 0), above_BT & (advantages_B1 > 0)
        dual_BT = mask_BT & (advantages_B1 < 0) & (ratio_BT > (float("inf") if dual_clip is None else dual_clip))
        masked_ratio_BT = torch.where(mask_BT, ratio_BT, 0.0)
        counts = {"tokens": mask_BT, "clipped_low": below_BT, "clipped_high": above_BT, "clipped_dual": dual_BT}
        stats = {name: hits_BT.sum().to(ratio_BT.dtype) for name, hits_BT in counts.items()}
        stats["ratio_sum"] = masked_ratio_BT.sum()
        stats["ratio_max"] = masked_ratio_BT.amax() if masked_ratio_BT.numel() else masked_ratio_BT.sum()
        stats["approx_kl_sum"] = torch.where(mask_BT, ratio_BT - 1.0 - log_ratio_BT, 0.0).sum()
    return loss, stats


def kl_penalty(logprobs_BT: Tensor, reference_logprobs_BT: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Per-token estimates (B, T) of KL(policy || reference) from the policy's own tokens (Schulman's names).

    With d = logp - reference_logp: k1 = d (unbiased, but as a loss its gradient has mean zero), k2 = d**2 / 2 (biased;
    the right gradient on-policy), k3 = exp(-d) + d - 1 (unbiased, never negative; TRL's without bias correction).
    The gradient flows through ``logprobs_BT`` only. Aggregate with ``masked_aggregate``; as there is no mask here, both
    arguments must be finite in the padding too.
    """
    _check_choice("estimator", estimator, KLEstimator)
    _check_shapes(logprobs_BT, reference_logprobs_BT=reference_logprobs_BT)
    difference_BT = at_least_float32(logprobs_BT) - reference_logprobs_BT.detach()
    if estimator == "k1":
        return difference_BT
    if estimator == "k2":
        return difference_BT.square() / 2
    return (-difference_BT).exp() + difference_BT - 1.0


def nll_loss(
    logprobs_BT: Tensor,
    nll_mask_BT: Tensor,
    *,
    scale: NllScale = "kept",
    kept_tokens: float | None = None,
    aggregation: Aggregation = "sequence_mean",
    max_length: float | None = None,
    global_sequences: float | None = None,
    global_tokens: float | None = None,
) -> Tensor:
    """The SFT term of Forced Rethinking: -logp on the tokens of ``nll_mask_BT``, this micro-batch's share.

    - ``scale="kept"``: the mean over these tokens, sum / ``kept_tokens``, the True entries of the NLL masks of the
      whole optimiser batch (0: nothing was kept, the loss is 0). The term is as strong for one kept sample as for all:
      of N samples of T tokens, with K tokens under the mask, each of these weighs coefficient * N * T / K times as much
      as a policy token at abs(A) = 1. At the coefficient 0.05 one kept sample of 512 whose mask covers three eighths of
      its tokens gives 68.
    - ``scale="batch"``: as the policy loss, by ``aggregation`` and its denominators (see ``masked_aggregate``); with
      ``"sequence_mean"`` the sum over the kept samples of the mean over their tokens, / ``global_sequences``. A token's
      weight does not depend on how many samples were kept: coefficient * T / (tokens of its sample under the mask),
      here 0.13. Every kept sample adds its own share.

    The official code takes the mean over the masked tokens of a micro-batch of 4 samples, and the average over
    micro-batches. While at most one in four is kept that is 4 times ``"batch"``: a weight of 0.05 * 4 = 0.2, on the
    whole response, where A > 0. Where several are, they share it. The coefficient is the caller's.
    """
    _check_choice("scale", scale, NllScale)
    if scale == "kept":
        return masked_aggregate(-logprobs_BT, nll_mask_BT, "token_mean", global_tokens=kept_tokens)
    return masked_aggregate(
        -logprobs_BT,
        nll_mask_BT,
        aggregation,
        global_sequences=global_sequences,
        global_tokens=global_tokens,
        max_length=max_length,
    )


def truncated_importance_weights(
    trainer_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, cap: float
) -> Tensor:
    """Token-level truncated importance sampling: min(exp(trainer - rollout), cap), detached, 1 outside the mask.

    Corrects for the gap between the log-probs of the rollout engine and those of the trainer *for the same weights*:
    ``trainer_logprobs_BT`` are the behaviour policy's as the trainer computes them. ``mask_BT`` must be False on forced
    tokens, which the engine did not sample. ``cap`` > 0 (2.0 is usual).
    """
    if cap <= 0:
        raise ValueError(f"cap of the importance weights must be > 0, got {cap}")
    _check_shapes(trainer_logprobs_BT, rollout_logprobs_BT=rollout_logprobs_BT, mask_BT=mask_BT)
    gap_BT = at_least_float32(trainer_logprobs_BT).detach() - rollout_logprobs_BT.detach()
    return torch.where(mask_BT.bool(), gap_BT.exp().clamp(max=cap), 1.0)


def merge_stats(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One dictionary from those of several ``policy_loss`` calls: ``*_max`` by maximum, the rest by sum."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in total:
                total[name] = value
            else:
                total[name] = torch.maximum(total[name], value) if name.endswith("_max") else total[name] + value
    return total


def check_finite(loss: Tensor, where: str) -> None:
    """Raise FloatingPointError when a loss is NaN or infinite; ``where`` names the step and the samples."""
    if not bool(torch.isfinite(loss).all()):
        raise FloatingPointError(
            f"the loss of {where} is {loss.detach().tolist()}. Check ratio_max and the gap between engine and trainer"
            " log-probs; a lower learning rate or fewer steps per episode keep the ratio near 1"
        )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision is raised to float32 (exp and long sums need it); float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _denominator(name: str, count: float) -> float:
    if count < 0:
        raise ValueError(f"{name} must be >= 0, got {count}")
    return max(count, 1)  # a batch of nothing has a loss of 0, not NaN


def _check_choice(name: str, value: str, literal: object) -> None:
    choices = get_args(literal)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def _check_shapes(reference_BT: Tensor, **others: Tensor) -> None:
    if reference_BT.ndim != 2:
        raise ValueError(f"expected tensors of shape (samples, positions), got {tuple(reference_BT.shape)}")
    for name, tensor in others.items():
        if tensor.shape != reference_BT.shape:
            raise ValueError(f"{name} must have shape {tuple(reference_BT.shape)}, got {tuple(tensor.shape)}")
