"""How far apart two computations of the same may be, from the arithmetic and not from what one processor gave.

Two ways of computing one sum (another order, other vector lengths, fused products) differ by a few units in the last
place of its largest terms. What such a difference becomes behind the layers of a model is not known to a factor of ten,
and a processor may be that much worse than the one at hand. Hence two kinds of bounds:

- where equality is claimed, both sides are computed in float64 (``in_float64``) and ``EXACT`` holds: it allows for a
  hundred thousand units in the last place, and is still a thousand times smaller than any float32 result could pass;
- where float32 itself is what is tested (compiled layers, other engines, other processes), ``rounding`` says what the
  model's depth and its longest sums can make of float32's unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Any

import pytest
import torch

from rethinker.config import ConfigError
from rethinker.policy.cpu import check_bfloat16

EXACT = 1e-10  # 5e5 units of float64 (2.2e-16); one rounding to float32 on the way costs 6e-8

# Matrix products and sums one after another on the longest way through the tiny models: 3 decoder layers of six (query
# and key, their product, that with the values, output, up, down) and two norms, as many in 3 blocks of the tower at
# most, patches, merger (2), last norm, head.
STEPS = 2 * 3 * 8 + 5
TERMS = 256  # of the longest sum: the width of the tiny models' MLP, and more than a prompt's tokens
PIXELS = 4 * 4 * 2**-24  # four roundings of (value / 255 - mean) / std, divided by a std of 0.26
LOGPROB = 10.0  # nats: how large the log-probs and logits of the random tiny models are


def rounding(magnitude: float = 1.0, *, steps: int = STEPS, terms: int = TERMS) -> float:
    """The difference between two float32 computations of a number whose terms are about ``magnitude`` large.

    Rounding a sum of n terms moves it by about sqrt(n) half units; ``steps`` of them one after another add up at most
    linearly. For the log-probs of a tiny model (magnitude 10): 4.6e-4.
    """
    return magnitude * steps * sqrt(terms) * torch.finfo(torch.float32).eps / 2


def _bfloat16_fault() -> str:
    try:
        check_bfloat16("bfloat16")
    except ConfigError as error:
        return str(error)
    return ""


needs_bfloat16 = pytest.mark.skipif(bool(_bfloat16_fault()), reason=_bfloat16_fault())


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside, whatever is cast to float32 becomes float64.

    transformers casts to float32 by name, in RMSNorm, the rotary tables and the vision tower's queries and keys: there
    a model of float64 weights would compute in float32.
    """
    to = torch.Tensor.to

    def cast(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in kwargs.items()}
        return to(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", cast)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield
