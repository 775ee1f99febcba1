"""One token a row from logits, reproducible sample by sample.

Every sample has a random stream of its own, named by (seed of the request, index of the sample): what it draws does
not depend on the batch it is in, on its row, or on the rank. (What the model computes for it does, by float rounding:
a draw within about 1e-7 of a boundary may fall on the other side.)

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rethinker.policy.forward import process_logits


def uniform_stream(seed: int, index: int, length: int) -> np.ndarray:
    """``length`` uniform numbers in [0, 1) of sample ``index`` of a request with ``seed`` (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, index])).random(length)


def sampling_logprobs(logits_NV: Tensor, banned: Tensor, temperature: float, top_p: float) -> Tensor:
    """Log-probs [N, V], at least float32, of what is sampled from: temperature, ban, then top_p, renormalised.

    Greedy (temperature 0): those at temperature 1, as vLLM reports them.
    """
    logprobs_NV = torch.log_softmax(process_logits(logits_NV, banned, temperature or 1.0), dim=-1)
    if top_p >= 1.0 or temperature == 0:
        return logprobs_NV
    ordered, order = logprobs_NV.sort(dim=-1, descending=True)
    before = _cumulative(ordered.exp()) - ordered.exp()
    # A token stays where the mass before it is below top_p: the one that crosses it is the last.
    dropped = torch.zeros_like(logprobs_NV, dtype=torch.bool).scatter(-1, order, before >= top_p)
    dropped.scatter_(-1, order[:, :1], False)
    return torch.log_softmax(logprobs_NV.masked_fill(dropped, float("-inf")), dim=-1)


def choose(logprobs_NV: Tensor, uniforms_N: Tensor | None) -> Tensor:
    """Tokens [N] by inversion of the cumulative distribution at ``uniforms_N``; the most likely ones where it is None.

    The sum runs in float64: over a vocabulary of 150,000 float32 would be off by 1e-5.
    """
    if uniforms_N is None:
        return logprobs_NV.argmax(-1)
    cumulative = _cumulative(logprobs_NV.double().exp())
    points = uniforms_N[:, None].to(cumulative) * cumulative[:, -1:]
    # First token whose cumulative mass exceeds the point: tokens of probability zero are never chosen.
    return torch.searchsorted(cumulative, points, right=True)[:, 0].clamp_(max=logprobs_NV.shape[1] - 1)


def _cumulative(values_NV: Tensor) -> Tensor:
    """Cumulative sums of the rows. CUDA's have no deterministic algorithm: where one is asked for, a CPU's."""
    if values_NV.is_cuda and torch.are_deterministic_algorithms_enabled():
        return values_NV.cpu().cumsum(-1).to(values_NV.device)
    return values_NV.cumsum(-1)
