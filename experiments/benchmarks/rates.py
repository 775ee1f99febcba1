"""How fast this process multiplies matrices, in floating-point operations a second of its CPU time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import nn

LARGE = (1024, 1024, 1024)  # rows, inputs, outputs: what the machine can do
MICRO_BATCH_ROWS = 2048  # tokens of a micro-batch of ours

Shape = tuple[int, int, int]


def machine_rates(
    model: nn.Module, rows: int, dtype: torch.dtype, decoding: torch.dtype | None = None
) -> dict[str, float]:
    """Of large matrices, and of the linear layers of ``model`` for a micro-batch's tokens (training) and for ``rows``
    (decoding, a token a response). ``decoding``: the type of responses' arithmetic, if not ``dtype``; the rate of
    large matrices in it is ``large_decoding``.
    """
    layers = list(dict.fromkeys(linear_layers(model)))
    training = {"large": [LARGE], "training": [(MICRO_BATCH_ROWS, *layer) for layer in layers]}
    responses = {"large_decoding": [LARGE], "decoding": [(rows, *layer) for layer in layers]}
    return {name: rate(shapes, dtype) for name, shapes in training.items()} | {
        name: rate(shapes, decoding or dtype) for name, shapes in responses.items()
    }


def linear_layers(model: nn.Module) -> Iterable[tuple[int, int]]:
    """Inputs and outputs of the language model's linear layers, the output layer's too."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "visual" not in name:
            yield module.in_features, module.out_features


@torch.no_grad()
def rate(shapes: Sequence[Shape], dtype: torch.dtype, seconds: float = 0.1) -> float:
    """All ``shapes`` in turn, for ``seconds`` of CPU time at least."""
    random = partial(torch.randn, dtype=dtype)
    pairs = [(random(rows, inner), random(out, inner)) for rows, inner, out in shapes]
    for left, right in pairs:
        nn.functional.linear(left, right)
    work = sum(2 * rows * inner * out for rows, inner, out in shapes)
    done, spent, start = 0, 0.0, time.process_time()
    while spent < seconds:
        for left, right in pairs:
            nn.functional.linear(left, right)
        done, spent = done + work, time.process_time() - start
    return done / spent
