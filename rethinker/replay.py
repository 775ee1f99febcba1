"""Selective Sample Replay: the paper's Algorithm 1, and the baselines with the same interface.

Differs from arXiv:2504.08837 in:
- nothing by default: effective samples enter the buffer before the draw, P(j) is proportional to abs(A_j)**alpha, the
  buffer is cleared when an episode starts;
- the paper gives the distribution of one draw but not whether draws are with replacement; here they are (independent
  draws), so that every draw has the stated distribution, and a small buffer can still fill a large batch;
- ``lifetime`` and ``capacity`` are ours: buffers that outlive their episode, and a bound on their size;
- with a price of tokens (``reward.token_price``, ours) responses of a unanimous group have advantages too. They are
  trained on once, when they are fresh, and never stored: correctness decides what is effective, else the price alone
  would fill the buffer. They fill the batch, so that little is left to draw: replay hardly acts under a price.

The sampling distribution (``draw_probabilities``) is separate from the storage. It is global: give ``select`` the whole
batch of all data-parallel ranks, in the same order on every rank, and every rank computes the same batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rethinker.types import Sample

Mode = Literal["grpo", "filter", "ssr"]


def draw_probabilities(advantages: Sequence[float] | NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """P(j) = abs(A_j)**alpha / sum_k abs(A_k)**alpha (paper, Algorithm 1), float64, summing to 1.

    ``alpha`` 0 is uniform over the effective samples; an advantage of 0 has probability 0 for every alpha.
    Computed from logarithms relative to the largest, so that neither a large alpha nor a tiny A overflows.
    Raises ValueError when nothing is effective or alpha is negative or not finite.
    """
    _check_alpha(alpha)
    magnitudes = np.abs(np.asarray(advantages, dtype=np.float64))
    assert magnitudes.ndim == 1 and np.isfinite(magnitudes).all()
    effective = magnitudes > 0
    if not effective.any():
        raise ValueError("no sample has abs(advantage) > 0: there is nothing to draw from")
    logs = np.log(magnitudes, where=effective, out=np.full_like(magnitudes, -np.inf))
    weights = np.zeros_like(magnitudes)
    weights[effective] = np.exp(alpha * (logs[effective] - logs[effective].max()))
    return weights / weights.sum()


class Selector:
    """Chooses the samples of a raw batch to train on, and older ones to add. This base class is plain GRPO: every
    sample is trained on, including those with zero advantage (they only dilute the batch)."""

    mode: Mode = "grpo"

    def select(self, samples: Sequence[Sample]) -> list[Sample]:
        """The training batch of one step, from the raw batch of that step (all ranks)."""
        _with_advantage(samples)  # checks them
        return list(samples)

    def start_episode(self) -> None:
        """Call before the first ``select`` of every episode."""

    def stats(self) -> dict[str, float]:
        """buffer_size: samples in the buffer."""
        return {"buffer_size": 0.0}

    def state_dict(self) -> dict[str, Any]:
        """What the batches of later episodes depend on."""
        return {"mode": self.mode}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where ``state_dict`` was taken. Raises ValueError for the state of another mode."""
        _check_mode(self.mode, state)


class DropIneffective(Selector):
    """GRPO-Filter: samples with zero advantage are dropped and not replaced."""

    mode: Mode = "filter"

    def select(self, samples: Sequence[Sample]) -> list[Sample]:
        return _with_advantage(samples)


class SelectiveSampleReplay(Selector):
    """Algorithm 1: drop samples with zero advantage, refill the batch from a buffer of effective ones.

    ``alpha`` >= 0: exponent of abs(advantage) (paper, appendix B.3: 1; 0 is uniform).
    ``lifetime``: in episodes. 1 (paper) clears the buffer when an episode starts, k keeps the k - 1 episodes before,
    None keeps all. ``capacity``: maximum number of samples held, the oldest are dropped first; None is unbounded.
    ``seed``: of the buffer's private generator, whose state is part of ``state_dict``.
    """

    mode: Mode = "ssr"

    def __init__(
        self, alpha: float = 1.0, seed: int = 0, lifetime: int | None = 1, capacity: int | None = None
    ) -> None:
        _check_alpha(alpha)
        for name, value in (("lifetime", lifetime), ("capacity", capacity)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 (None: no limit), got {value}")
        self.alpha = alpha
        self.lifetime = lifetime
        self._entries: deque[tuple[int, Sample]] = deque(maxlen=capacity)  # (episode added, sample), oldest first
        self._episode = 0
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Samples in the buffer."""
        return len(self._entries)

    def select(self, samples: Sequence[Sample]) -> list[Sample]:
        """D_eff followed by the drawn samples: as long as ``samples``, or [] when nothing was ever effective.

        ``samples`` is the raw batch of one step, flat; each needs ``.advantage``, a finite float, and is stored unless
        it is marked ``.unanimous``. Drawn samples come back with ``replayed`` set. Raises ValueError for an advantage
        that is not finite; the buffer is then unchanged.
        """
        fresh = _with_advantage(samples)
        self._entries.extend((self._episode, sample) for sample in fresh if not _unanimous(sample))
        missing = len(samples) - len(fresh) if self._entries else 0
        return fresh + [_mark_replayed(self._entries[j][1]) for j in self._draw(missing)]

    def _draw(self, n: int) -> list[int]:
        if n == 0:
            return []
        probabilities = draw_probabilities([sample.advantage for _, sample in self._entries], self.alpha)
        return self._generator.choice(len(probabilities), size=n, replace=True, p=probabilities).tolist()

    def start_episode(self) -> None:
        """Count a new episode and drop the samples that have reached their lifetime."""
        while self._entries and self._outlived(self._entries[0][0]):
            self._entries.popleft()
        self._episode += 1

    def _outlived(self, added: int) -> bool:
        """Whether the next episode starts without the samples of episode ``added``."""
        return self.lifetime is not None and self._episode + 1 - added >= self.lifetime

    def stats(self) -> dict[str, float]:
        """buffer_size: samples in the buffer."""
        return {"buffer_size": float(len(self._entries))}

    def state_dict(self) -> dict[str, Any]:
        """What the draws of later episodes depend on: ``mode``, ``episode``, ``generator`` (JSON-able), ``entries``.

        To be taken between episodes: samples that the next ``start_episode`` will forget are left out.
        ``entries`` is a list of (episode added, sample) holding the sample objects themselves: the checkpoint
        writes them to disk and gives samples back to ``load_state_dict``.
        """
        return {
            "mode": self.mode,
            "episode": self._episode,
            "generator": self._generator.bit_generator.state,
            "entries": [(added, sample) for added, sample in self._entries if not self._outlived(added)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where ``state_dict`` was taken; ``alpha``, ``lifetime`` and ``capacity`` stay this object's."""
        _check_mode(self.mode, state)
        entries = [(int(added), sample) for added, sample in state["entries"]]
        if len(_with_advantage([sample for _, sample in entries])) != len(entries):
            raise ValueError("the replay state holds samples with zero advantage, which this class never stores")
        self._generator.bit_generator.state = state["generator"]
        self._episode = int(state["episode"])
        self._entries = deque(entries, maxlen=self._entries.maxlen)


def make_selector(
    mode: Mode, *, alpha: float = 1.0, seed: int = 0, lifetime: int | None = 1, capacity: int | None = None
) -> Selector:
    """The selector of a configuration: "grpo" (no filter), "filter" (no refill) or "ssr".

    The other arguments are those of "ssr" and mean nothing to the two baselines, which have no buffer.
    """
    if mode == "grpo":
        return Selector()
    if mode == "filter":
        return DropIneffective()
    if mode == "ssr":
        return SelectiveSampleReplay(alpha=alpha, seed=seed, lifetime=lifetime, capacity=capacity)
    raise ValueError(f"replay mode must be one of {', '.join(get_args(Mode))}; got {mode!r}")


def _with_advantage(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with abs(advantage) > 0."""
    for index, sample in enumerate(samples):
        if not math.isfinite(sample.advantage):
            raise ValueError(f"the advantage of sample {index} is {sample.advantage}: {sample!r:.200}")
    return [sample for sample in samples if abs(sample.advantage) > 0.0]


def _unanimous(sample: Sample) -> bool:
    return getattr(sample, "unanimous", False)  # toys have no mark


def _mark_replayed(sample: Sample) -> Sample:
    return dataclasses.replace(sample, replayed=True) if hasattr(sample, "replayed") else sample  # nor this one


def _check_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be finite and >= 0, got {alpha}")


def _check_mode(mode: Mode, state: Mapping[str, Any]) -> None:
    if state["mode"] != mode:
        raise ValueError(
            f'the saved selector is "{state["mode"]}" and this one "{mode}"; resume with the mode of the run'
        )
