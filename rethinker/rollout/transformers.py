"""Rollouts by the policy's own weights: no second copy, no synchronisation, any machine.

Each distinct prompt of a batch is read once, whatever the number of its samples and requests, and each distinct image
encoded once; rows that ended leave the batch. For large models prefer vLLM.

Shapes: N rows (samples still being written), V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rethinker.policy.policy import Policy
from rethinker.policy.sharding import gather, is_sharded, release
from rethinker.rollout.base import Arrived
from rethinker.rollout.decoding import Decoder
from rethinker.rollout.requests import check_requests, token_budget
from rethinker.rollout.sampler import choose, sampling_logprobs, uniform_stream
from rethinker.types import Request, Response, Sampling

KEEP_ROWS = 0.75  # finished rows are dropped once fewer than this share of the rows is still being written
SPARE_ROWS = 1.5  # rows computed for each sample, at most, so that prompts have equally many of them


@dataclass
class _Writing:
    """A sample while it is being written."""

    request: Request
    item: int  # place of the request in its batch
    budget: int
    uniforms: np.ndarray | None  # None: greedy
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False

    @property
    def active(self) -> bool:
        return not self.finished and len(self.token_ids) < self.budget


class TransformersEngine:
    """Generates with ``policy.model`` itself.

    ``batch_size``: requests per batch (times ``n`` samples). The model is used unwrapped, in evaluation mode, without
    gradients; its mode is restored. ``forward``: the policy's ``PolicyForward`` where it is sharded: every rank then
    has all weights from ``sync_weights`` until ``sleep``, which are collective.
    """

    def __init__(self, policy: Policy, batch_size: int = 64, forward: torch.nn.Module | None = None) -> None:
        self.policy = policy
        self.batch_size = batch_size
        self.root = forward if forward is not None and is_sharded(forward) else None

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> Mapping[str, tuple[Response, ...]]:
        """See RolloutEngine; responses arrive a batch at a time."""
        check_requests(requests, sampling)
        # Prompts of similar length share a batch, and requests of one query stay together.
        ordered = sorted(requests, key=lambda r: (-len(self.policy.prompt(r.query).ids), r.query.qid, r.request_id))
        done: dict[str, tuple[Response, ...]] = {}
        for start in range(0, len(ordered), self.batch_size):
            batch = self._batch(ordered[start : start + self.batch_size], sampling)
            done |= batch
            if arrived:
                arrived(batch)
        return {request.request_id: done[request.request_id] for request in requests}

    def sync_weights(self, model: Any) -> None:
        """Nothing is copied for the policy's own module; the weights of another module of the same shape are."""
        if model is not self.policy.model:
            self.policy.model.load_state_dict(model.state_dict())
        if self.root:
            gather(self.root)

    def sleep(self) -> None:
        """Nothing is kept between calls, but for the weights of a sharded policy."""
        if self.root:
            release(self.root)

    def close(self) -> None:
        """Nothing is held."""

    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> dict[str, tuple[Response, ...]]:
        greedy = sampling.temperature == 0
        samples = [
            _Writing(request, item, budget, None if greedy else uniform_stream(request.seed, index, budget))
            for item, request in enumerate(requests)
            for budget in [token_budget(request, sampling)]
            for index in range(request.first, request.first + request.n)
        ]
        with _evaluating(self.policy.model), torch.no_grad():
            self._write(requests, samples, sampling)
        results: dict[str, tuple[Response, ...]] = {request.request_id: () for request in requests}
        for sample in samples:
            response = Response(
                tuple(sample.token_ids), tuple(sample.logprobs), sample.finished, self.policy.decode(sample.token_ids)
            )
            results[sample.request.request_id] += (response,)
        return results

    def _write(self, requests: Sequence[Request], samples: Sequence[_Writing], sampling: Sampling) -> None:
        """Write all samples to their ends."""
        device = self.policy.device
        banned = torch.tensor(self.policy.banned_ids, device=device)
        decoder = Decoder(self.policy, [(request.query, request.prefix_ids) for request in requests])
        waiting: list[list[tuple[int, _Writing]]] = [[] for _ in range(decoder.prompts)]
        for writing in samples:
            waiting[decoder.owners[writing.item]].append((writing.item, writing))
        prompts, places = arrange(waiting)
        decoder.select(prompts, [row for row, _ in places])
        rows = [sample for _, sample in places]
        uniforms = _uniforms(rows).to(device) if sampling.temperature > 0 else None
        for step in itertools.count():
            logprobs_NV = sampling_logprobs(decoder.logits_NV, banned, sampling.temperature, sampling.top_p)
            tokens = choose(logprobs_NV, None if uniforms is None else uniforms[:, step])
            chosen = logprobs_NV.gather(1, tokens[:, None])[:, 0]
            ended = False
            for sample, token, logprob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
                if sample is not None and sample.active:
                    sample.token_ids.append(token)
                    sample.logprobs.append(logprob)
                    sample.finished = token in self.policy.eos_ids
                    ended = ended or not sample.active
            if not ended:
                decoder.advance(tokens)
                continue
            active: list[list[tuple[int, _Writing]]] = [[] for _ in prompts]
            for row, sample in enumerate(rows):
                if sample is not None and sample.active:
                    active[row * len(prompts) // len(rows)].append((row, sample))
            if not any(active):
                return
            fewer_prompts, places = arrange(active)
            if len(places) < KEEP_ROWS * len(rows):
                kept = [row for row, _ in places]
                prompts, rows = fewer_prompts, [sample for _, sample in places]
                decoder.select(prompts, kept)
                tokens, uniforms = tokens[kept], None if uniforms is None else uniforms[kept]
            decoder.advance(tokens)


def arrange(active: Sequence[Sequence[tuple[int, _Writing]]]) -> tuple[list[int], list[tuple[int, _Writing | None]]]:
    """Prompts and rows to continue with, from the ``active`` (row, sample) of each prompt.

    All prompts get equally many rows: where one has fewer samples, a row without a sample fills up, and where that
    would waste too much, prompts are repeated, one per sample.
    """
    alive = [(prompt, list(rows)) for prompt, rows in enumerate(active) if rows]
    width = max(len(rows) for _, rows in alive)
    if len(alive) * width > SPARE_ROWS * sum(len(rows) for _, rows in alive):
        alive, width = [(prompt, [row]) for prompt, rows in alive for row in rows], 1
    arranged: list[tuple[int, _Writing | None]] = []
    for _, rows in alive:
        arranged += [*rows, *[(rows[0][0], None)] * (width - len(rows))]
    return [prompt for prompt, _ in alive], arranged


def _uniforms(rows: Sequence[_Writing | None]) -> Tensor:
    """The random numbers of every row, [N, longest budget]."""
    streams = [np.empty(0) if sample is None or sample.uniforms is None else sample.uniforms for sample in rows]
    table = np.zeros((len(streams), max(map(len, streams))))
    for row, stream in zip(table, streams, strict=True):
        row[: len(stream)] = stream
    return torch.from_numpy(table)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        # A row more or less would compile anew: only the trainer's passes run compiled (model.compile).
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(training)
