"""One optimiser update on a batch of samples: micro-batches, the loss and its global denominators.

Every rank knows the whole batch of the step and processes its own part, balanced by tokens. Every denominator (samples,
tokens, NLL tokens) is that of the whole batch, so the gradient does not depend on the number of ranks or micro-batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rethinker.arrays import Floats
from rethinker.config import RunConfig
from rethinker.grpo import (
    check_finite,
    kl_penalty,
    masked_aggregate,
    merge_stats,
    nll_loss,
    policy_loss,
    truncated_importance_weights,
)
from rethinker.policy.batching import plan
from rethinker.policy.forward import token_logprobs
from rethinker.policy.policy import Policy
from rethinker.policy.sharding import is_sharded, whole
from rethinker.types import Sample


@dataclass(frozen=True)
class Packed:
    """Samples as right-padded tensors, next to the log-probs of ``token_logprobs`` (B samples, T tokens)."""

    behavior_logprobs_BT: torch.Tensor
    rollout_logprobs_BT: torch.Tensor
    sampled_BT: torch.Tensor
    nll_BT: torch.Tensor
    advantages_B: torch.Tensor


def pack(samples: Sequence[Sample], logprobs_BT: torch.Tensor, on_policy: bool = False) -> Packed:
    """Stack what the loss needs next to ``logprobs_BT``, which are the behaviour policy's own if ``on_policy``.

    Raises ValueError, with the sample's id, where lengths disagree.
    """
    device, dtype = logprobs_BT.device, logprobs_BT.dtype
    length = max(len(sample.response.token_ids) for sample in samples)

    def rows(name: str, dtype: torch.dtype) -> torch.Tensor:
        out = torch.zeros(len(samples), length, dtype=dtype)
        for row, sample in zip(out, samples, strict=True):
            values = getattr(sample, name)
            if name == "nll_mask" and not values:
                continue
            if len(values) != len(sample.response.token_ids):
                raise ValueError(
                    f"sample {sample.sample_id}: {name} has {len(values)} entries for "
                    f"{len(sample.response.token_ids)} tokens"
                )
            row[: len(values)] = torch.tensor(np.asarray(values), dtype=dtype)
        return out.to(device)

    return Packed(
        behavior_logprobs_BT=logprobs_BT.detach() if on_policy else rows("behavior_logprobs", dtype),
        rollout_logprobs_BT=rows("rollout_logprobs", dtype),
        sampled_BT=rows("sampled_mask", torch.bool),
        nll_BT=rows("nll_mask", torch.bool),
        advantages_B=torch.tensor([sample.advantage for sample in samples], dtype=dtype, device=device),
    )


class PolicyUpdate:
    """The loss of a step and the optimiser's update."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        forward: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        accelerator: Any,
        reference: torch.nn.Module | None = None,
    ) -> None:
        self.config = config
        self.policy = policy
        self.forward = forward
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.accelerator = accelerator
        self.reference = reference
        self.scored: dict[str, Floats] = {}  # sample id -> log-probs

    def __call__(
        self, batch: Sequence[Sample], *, on_policy: bool = False, homes: Mapping[str, int] | None = None
    ) -> dict[str, float | None]:
        """Update the policy on the whole batch of the step; returns the metrics of glossary.STEP.

        ``on_policy``: the weights are those of the behaviour policy of every sample, so that the log-probs of the
        update's own forward pass are the behaviour policy's; ``scored`` has them, of this rank's samples, afterwards.
        ``homes``: of ``batching.plan``.
        Samples without any token are part of the batch (its size is a denominator), and have no loss.
        Raises FloatingPointError if the gradient is not finite; the weights are then as before.
        """
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        options = self.config.optim.micro_batch_tokens, self.config.model.forward
        with_tokens = [sample for sample in batch if sample.response.token_ids]
        parts = plan(with_tokens, ranks, *options, homes)
        # Every rank makes the same number of passes, so that none waits for a collective that another never enters;
        # a rank that has fewer micro-batches of its own joins with a sample that carries no loss.
        passes = max(map(len, parts))
        micro_batches = parts[rank] + [[]] * (passes - len(parts[rank]))
        parts_of_stats: list[dict[str, torch.Tensor]] = []
        encoded = self.policy.encoder.encoded
        self.forward.train()
        self.scored = {}
        sharded = is_sharded(self.forward)
        for index, samples in enumerate(micro_batches):
            last = index == passes - 1
            # A sharded gradient is reduced each time: kept whole until the last pass it would take 4 bytes a weight.
            with contextlib.nullcontext() if last or sharded else self.accelerator.no_sync(self.forward):
                loss, stats = self._loss(samples or with_tokens[:1], batch, on_policy)
                if not samples:
                    loss, stats = loss * 0.0, {name: torch.zeros_like(value) for name, value in stats.items()}
                parts_of_stats.append(stats)
                check_finite(loss, f"the step whose first sample is {batch[0].sample_id}")
                # Data parallelism averages over ranks; the denominators are global already.
                self.accelerator.backward(loss * ranks)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = float(whole(self.accelerator.clip_grad_norm_(trained, self.config.optim.max_grad_norm)))
        if not torch.isfinite(torch.tensor(norm)):
            self.optimizer.zero_grad()
            raise FloatingPointError(
                f"the gradient is not finite ({norm}) on the batch of {len(batch)} samples starting with "
                f"{batch[0].sample_id}: lower optim.lr, or inspect this episode's responses"
            )
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        stats = merge_stats([*parts_of_stats, {"images": torch.tensor(float(self.policy.encoder.encoded - encoded))}])
        return self._metrics(self._reduce(stats), batch, norm, lr)

    def _loss(
        self, samples: Sequence[Sample], batch: Sequence[Sample], on_policy: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """This micro-batch's share of the batch's loss."""
        config, grpo = self.config, self.config.grpo
        items = [(sample.query, sample.response.token_ids) for sample in samples]
        logprobs_BT, mask_BT, entropy_BT = token_logprobs(
            self.policy,
            self.forward,
            items,
            temperature=config.rollout.temperature,
            packing=config.model.forward,
            entropy="loss" if grpo.entropy_coef else "value",
            dummy_vision=self.accelerator.num_processes > 1 and self.policy.encoder.trained,
        )
        assert entropy_BT is not None
        packed = pack(samples, logprobs_BT, on_policy)
        if on_policy:
            for sample, row in zip(samples, logprobs_BT.detach().cpu().numpy(), strict=True):
                self.scored[sample.sample_id] = Floats(row[: len(sample.response.token_ids)])
        behavior_BT, loss_mask_BT = packed.behavior_logprobs_BT, mask_BT
        if config.rethink.forced_tokens == "on_policy":
            # The trigger was sampled by no policy: its ratio is 1, its gradient A * grad log pi.
            behavior_BT = torch.where(packed.sampled_BT, behavior_BT, logprobs_BT.detach())
        elif config.rethink.forced_tokens == "mask":
            loss_mask_BT = mask_BT & packed.sampled_BT
        weights_BT = None
        if grpo.importance_cap is not None:
            weights_BT = truncated_importance_weights(
                packed.behavior_logprobs_BT, packed.rollout_logprobs_BT, packed.sampled_BT, grpo.importance_cap
            )
        shares: dict[str, Any] = {
            "aggregation": grpo.aggregation,
            "max_length": config.rollout.max_new_tokens,
            "global_sequences": len(batch),
            "global_tokens": sum(_loss_tokens(sample, config.rethink.forced_tokens) for sample in batch),
        }
        loss, stats = policy_loss(
            logprobs_BT,
            behavior_BT,
            packed.advantages_B,
            loss_mask_BT,
            clip_low=grpo.clip_low,
            clip_high=grpo.clip_high,
            ratio=grpo.ratio,
            objective=grpo.objective,
            dual_clip=grpo.dual_clip,
            importance_weights_BT=weights_BT,
            **shares,
        )
        stats["policy"] = loss.detach()
        if grpo.policy_coef != 1:
            loss = grpo.policy_coef * loss
        stats["entropy"] = (entropy_BT.detach() * loss_mask_BT).sum()
        if weights_BT is not None and grpo.importance_cap is not None:
            stats["importance"] = (weights_BT * loss_mask_BT).sum()
            stats["truncated"] = ((weights_BT >= grpo.importance_cap) & loss_mask_BT & packed.sampled_BT).sum().float()
        nll_tokens = _nll_tokens(batch)
        if nll_tokens and config.rethink.nll_coef:
            scale: dict[str, Any] = {"scale": config.rethink.nll_scale, "kept_tokens": nll_tokens, **shares}
            nll = nll_loss(logprobs_BT, packed.nll_BT, **scale)
            loss = loss + config.rethink.nll_coef * nll
            stats["nll"] = nll.detach()
            ones_BT = torch.ones_like(logprobs_BT)
            stats["nll_weight"] = nll_loss(-ones_BT, packed.nll_BT, **scale) * config.rethink.nll_coef
            stats["policy_weight"] = masked_aggregate(ones_BT, loss_mask_BT, **shares)
        if grpo.entropy_coef:
            loss = loss - grpo.entropy_coef * masked_aggregate(entropy_BT, loss_mask_BT, **shares)
        if self.reference is not None:
            with torch.no_grad():
                reference_BT, _, _ = token_logprobs(
                    self.policy,
                    self.reference,
                    items,
                    temperature=config.rollout.temperature,
                    packing=config.model.forward,
                )
            kl = masked_aggregate(kl_penalty(logprobs_BT, reference_BT, grpo.kl_estimator), loss_mask_BT, **shares)
            loss = loss + grpo.kl_coef * kl
            stats["kl"] = kl.detach()
        stats["total"] = loss.detach()
        return loss, stats

    def _reduce(self, stats: dict[str, torch.Tensor]) -> dict[str, float]:
        """The statistics of all ranks, whose names are the same."""
        names = sorted(stats)
        row = torch.stack([stats[name].double().to(self.accelerator.device) for name in names])
        rows = self.accelerator.gather(row[None])
        merged = merge_stats(dict(zip(names, values, strict=True)) for values in rows.cpu())
        return {name: float(value) for name, value in merged.items()}

    def _metrics(
        self, sums: dict[str, float], batch: Sequence[Sample], norm: float, lr: float
    ) -> dict[str, float | None]:
        tokens = max(sums["tokens"], 1.0)
        nll_weight = None
        if "nll" in sums:
            nll_weight = sums["nll_weight"] / _nll_tokens(batch) / (sums["policy_weight"] / tokens)
        corrected = self.config.grpo.importance_cap is not None
        return {
            "loss/total": sums["total"],
            "loss/policy": sums["policy"],
            "loss/nll": sums.get("nll"),
            "loss/nll_weight": nll_weight,
            "loss/kl": sums.get("kl"),
            "policy/entropy": sums["entropy"] / tokens,
            "policy/ratio_mean": sums["ratio_sum"] / tokens,
            "policy/ratio_max": sums["ratio_max"],
            "policy/clip_fraction": (sums["clipped_low"] + sums["clipped_high"] + sums["clipped_dual"]) / tokens,
            "policy/approx_kl": sums["approx_kl_sum"] / tokens,
            "policy/grad_norm": norm,
            "importance/mean": sums["importance"] / tokens if corrected else None,
            "importance/truncated": sums["truncated"] / tokens if corrected else None,
            "batch/samples": float(len(batch)),
            "batch/tokens": float(sum(len(sample.response.token_ids) for sample in batch)),
            "batch/replayed": float(sum(sample.replayed for sample in batch)),
            "batch/rethought": float(sum(sample.rethinking is not None for sample in batch)),
            "batch/images": sums["images"],
            "optim/lr": lr,
        }


def _nll_tokens(batch: Sequence[Sample]) -> int:
    return sum(sum(sample.nll_mask) for sample in batch)


def _loss_tokens(sample: Sample, forced_tokens: str) -> int:
    return sum(sample.sampled_mask) if forced_tokens == "mask" else len(sample.response.token_ids)
