"""Roll-outs by the policy's own weights: no second copy, no synchronisation, any machine.

Per request: one prefill, each distinct image of a batch encoded once, the KV cache repeated for the samples; rows that
ended leave the batch. For large models prefer vLLM.

Shapes: P prompts of a batch, N rows (samples still being written), L prompt length (left-padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rethinker.policy.forward import encode_images, gather_images
from rethinker.policy.loading import Policy
from rethinker.rollout.requests import check_requests, token_budget
from rethinker.rollout.sampler import choose, sampling_logprobs, uniform_stream
from rethinker.types import Request, Response, Sampling

KEEP_ROWS = 0.75  # finished rows are dropped once fewer than this share of the rows is still being written


@dataclass
class _Writing:
    """A sample while it is being written."""

    request: Request
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

    ``batch_size``: prompts a batch (times ``n`` samples). The model is used unwrapped, in evaluation mode, without
    gradients; its mode is restored.
    """

    def __init__(self, policy: Policy, batch_size: int = 64) -> None:
        self.policy = policy
        self.batch_size = batch_size

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        """See RolloutEngine; requests of similar length share a batch."""
        check_requests(requests, sampling)
        by_length = sorted(requests, key=lambda r: (-self._length(r), r.request_id))
        done: dict[str, tuple[Response, ...]] = {}
        with _evaluating(self.policy.model), torch.no_grad():
            for start in range(0, len(by_length), self.batch_size):
                done.update(self._batch(by_length[start : start + self.batch_size], sampling))
        return {request.request_id: done[request.request_id] for request in requests}

    def sync_weights(self, model: Any) -> None:
        """Nothing is copied for the policy's own module; the weights of another module of the same shape are."""
        if model is not self.policy.model:
            self.policy.model.load_state_dict(model.state_dict())

    def sleep(self) -> None:
        """Nothing is kept between calls."""

    def close(self) -> None:
        """Nothing is held."""

    def _length(self, request: Request) -> int:
        return len(self.policy.prompt(request.query).ids) + len(request.prefix_ids)

    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> dict[str, tuple[Response, ...]]:
        greedy = sampling.temperature == 0
        samples = [
            _Writing(request, budget, None if greedy else uniform_stream(request.seed, index, budget))
            for request in requests
            for budget in [token_budget(request, sampling)]
            for index in range(request.n)
        ]
        self._write(_Decoder(self.policy, requests), samples, sampling)
        results: dict[str, tuple[Response, ...]] = {request.request_id: () for request in requests}
        for sample in samples:
            response = Response(
                tuple(sample.token_ids), tuple(sample.logprobs), sample.finished, self.policy.decode(sample.token_ids)
            )
            results[sample.request.request_id] += (response,)
        return results

    def _write(self, decoder: _Decoder, samples: list[_Writing], sampling: Sampling) -> None:
        banned = torch.tensor(self.policy.banned_ids, device=self.policy.device)
        longest = max(sample.budget for sample in samples)
        uniforms_NT = np.zeros((len(samples), longest))
        for row, sample in enumerate(samples):
            if sample.uniforms is not None:
                uniforms_NT[row, : sample.budget] = sample.uniforms
        uniforms = None if sampling.temperature == 0 else torch.from_numpy(uniforms_NT).to(self.policy.device)
        rows = samples
        for step in range(longest):
            logprobs_NV = sampling_logprobs(decoder.logits_NV, banned, sampling.temperature, sampling.top_p)
            tokens = choose(logprobs_NV, None if uniforms is None else uniforms[:, step])
            chosen = logprobs_NV.gather(1, tokens[:, None])[:, 0]
            for sample, token, logprob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
                if sample.active:
                    sample.token_ids.append(token)
                    sample.logprobs.append(logprob)
                    sample.finished = token == self.policy.eos_id
            active = [row for row, sample in enumerate(rows) if sample.active]
            if not active:
                return
            if len(active) < KEEP_ROWS * len(rows):
                rows = [rows[row] for row in active]
                kept = torch.tensor(active, device=self.policy.device)
                tokens, uniforms = tokens[kept], None if uniforms is None else uniforms[kept]
                decoder.select(kept)
            decoder.advance(tokens)


class _Decoder:
    """The model's state while a batch is written: KV cache, mask and positions; ``logits_NV`` are the next token's."""

    def __init__(self, policy: Policy, requests: Sequence[Request]) -> None:
        self.model: Any = policy.model
        prompts = [policy.prompt(request.query) for request in requests]
        device = policy.device
        width = max(len(p.ids) + len(r.prefix_ids) for p, r in zip(prompts, requests, strict=True))
        ids_PL = torch.full((len(requests), width), policy.pad_id)
        mask_PL = torch.zeros((len(requests), width), dtype=torch.long)
        positions_3PL = torch.zeros((3, len(requests), width), dtype=torch.long)
        next_P = torch.tensor(
            [p.next_position + len(r.prefix_ids) for p, r in zip(prompts, requests, strict=True)], device=device
        )
        for row, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            prefix = len(request.prefix_ids)
            start = width - len(prompt.ids) - prefix
            ids_PL[row, start:] = torch.tensor([*prompt.ids, *request.prefix_ids])
            mask_PL[row, start:] = 1
            positions_3PL[:, row, start : width - prefix] = prompt.positions
            positions_3PL[:, row, width - prefix :] = torch.arange(prefix) + prompt.next_position
        vision = gather_images(policy, [request.query for request in requests]).to(device)
        output = self.model.model(
            input_ids=ids_PL.to(device),
            position_ids=positions_3PL.to(device),
            attention_mask=mask_PL.to(device),
            mm_encoder_outputs=encode_images(self.model, vision),
            use_cache=True,
        )
        repeats = torch.tensor([request.n for request in requests], device=device)
        owner_N = torch.arange(len(requests), device=device).repeat_interleave(repeats)
        self._cache = output.past_key_values
        if len(owner_N) > len(requests):
            self._cache.batch_select_indices(owner_N)
        self._mask = mask_PL.to(device)[owner_N]
        self._next_N = next_P[owner_N]
        self.logits_NV: Tensor = self.model.lm_head(output.last_hidden_state[:, -1])[owner_N]

    def select(self, kept: Tensor) -> None:
        """Go on with the rows ``kept`` only."""
        self._cache.batch_select_indices(kept)
        self._mask, self._next_N = self._mask[kept], self._next_N[kept]

    def advance(self, tokens_N: Tensor) -> None:
        """Read one token a row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens_N), 1)], dim=1)
        hidden = self.model.model.language_model(
            input_ids=tokens_N[:, None],
            position_ids=self._next_N.expand(3, -1)[..., None],
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._next_N = self._next_N + 1
        self.logits_NV = self.model.lm_head(hidden[:, -1])


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
