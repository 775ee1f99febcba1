"""Log-probs of responses under the policy, each distinct image through the vision tower once a call.

The distribution is the sampler's: logits divided by the temperature, special tokens but EOS banned. ``top_p`` is not
applied here. Where responses were sampled with ``top_p`` < 1 an engine's own log-probs are those of the truncated
distribution; the policy ratio compares two outputs of this module (untruncated on both sides), and the engine's
log-probs enter only the truncated importance weights, which correct for the difference.

Shapes: B responses, T response positions (right-padded), R packed rows of length S, N response tokens, H hidden size,
V vocabulary.

A packed row is a prompt and one response here; the module itself only reads a ``PackedBatch``, so that another way of
packing (several responses behind one prompt, with an ``attention_mask``) needs no other forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rethinker.policy.loading import Policy
from rethinker.types import Query

BANNED_LOGIT = -1e9  # finite, so that 0 * log 0 is 0 in the entropy
CHUNK_ELEMENTS = 2**26  # float32 logits held at once: 256 MiB


@dataclass(frozen=True)
class PackedBatch:
    """What one forward pass reads.

    ``image_order``: for each image in the rows, in reading order, its index among the distinct images.
    ``predict_N``: index into R * S of the position that predicts each response token; ``mask_BT`` has N true entries
    and says, row by row, where they go.
    ``dummy_vision``: the pixels are a stand-in whose features enter with weight zero.
    """

    input_ids_RS: Tensor
    positions_3RS: Tensor
    attention_mask: Tensor | None  # None: causal
    pixel_values: Tensor | None  # of the distinct images, one after another
    grid_thw: Tensor | None  # [distinct images, 3]
    image_order: tuple[int, ...]
    predict_N: Tensor
    targets_N: Tensor
    mask_BT: Tensor
    banned: Tensor
    dummy_vision: bool = False

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Vision:
    """Pixels of distinct images and where they appear."""

    pixel_values: Tensor | None
    grid_thw: Tensor | None
    order: tuple[int, ...]

    def to(self, device: torch.device) -> Vision:
        """The same images on ``device``."""
        if self.pixel_values is None or self.grid_thw is None:
            return self
        return Vision(self.pixel_values.to(device), self.grid_thw.to(device), self.order)


def gather_images(policy: Policy, queries: Sequence[Query]) -> Vision:
    """The distinct images of ``queries``, each once, and the order in which the queries show them."""
    index: dict[str, int] = {}
    order: list[int] = []
    pixels = []
    for query in queries:
        for path in query.images:
            if path not in index:
                index[path] = len(index)
                pixels.append(policy.images.get(path, query.qid))
            order.append(index[path])
    if not pixels:
        return Vision(None, None, ())
    return Vision(torch.cat([image.values for image in pixels]), torch.stack([p.grid for p in pixels]), tuple(order))


def encode_images(model: Any, vision: Vision) -> dict[str, Any] | None:
    """``mm_encoder_outputs`` for the model's forward: features once a distinct image, repeated as ``order`` says.

    Qwen3-VL's DeepStack features go the same way. None without images.
    """
    if vision.pixel_values is None:
        return None
    output = model.model.get_image_features(vision.pixel_values, vision.grid_thw, return_dict=True)
    chosen: dict[str, Any] = {"pooler_output": tuple(output.pooler_output[index] for index in vision.order)}
    if "deepstack_features" in output:
        chosen["deepstack_features"] = [tuple(layer[i] for i in vision.order) for layer in output.deepstack_features]
    return {"image": type(output)(**chosen)}


def pack(policy: Policy, items: Sequence[tuple[Query, Sequence[int]]], *, dummy_vision: bool = False) -> PackedBatch:
    """Prompts with their responses, right-padded, on the CPU.

    ``dummy_vision``: where no item has an image, put a blank one through the vision tower with weight zero, so that
    data-parallel ranks without images take part in its gradient exchange.

    Raises ValueError (with the qid) for no items, an empty response, a banned token in a response, or pixels whose
    number does not fit the prompt's image tokens.
    """
    if not items:
        raise ValueError("no responses to score")
    banned = set(policy.banned_ids)
    prompts = [policy.prompt(query) for query, _ in items]
    width = max(len(p.ids) + len(response) for p, (_, response) in zip(prompts, items, strict=True))
    longest = max(len(response) for _, response in items)
    input_ids = torch.full((len(items), width), policy.pad_id)
    positions = torch.zeros((3, len(items), width), dtype=torch.long)
    mask = torch.zeros((len(items), longest), dtype=torch.bool)
    predict: list[Tensor] = []
    targets: list[int] = []
    for row, (prompt, (query, response)) in enumerate(zip(prompts, items, strict=True)):
        start, length = len(prompt.ids), len(response)
        if not length:
            raise ValueError(f"query {query.qid!r}: an empty response has no log-probs; drop it before training")
        if found := banned.intersection(response):
            raise ValueError(
                f"query {query.qid!r}: the response holds banned tokens {sorted(found)} "
                f"({policy.tokenizer.convert_ids_to_tokens(sorted(found))}); the engine did not apply the ban"
            )
        _check_images(policy, query, prompt.ids)
        input_ids[row, : start + length] = torch.tensor([*prompt.ids, *response])
        positions[:, row, :start] = prompt.positions
        positions[:, row, start : start + length] = torch.arange(length) + prompt.next_position
        mask[row, :length] = True
        predict.append(torch.arange(length) + row * width + start - 1)
        targets.extend(response)
    vision = gather_images(policy, [query for query, _ in items])
    stand_in = dummy_vision and vision.pixel_values is None
    if stand_in:
        vision = _blank_image(policy)
    return PackedBatch(
        input_ids_RS=input_ids,
        positions_3RS=positions,
        attention_mask=None,
        pixel_values=vision.pixel_values,
        grid_thw=vision.grid_thw,
        image_order=vision.order,
        predict_N=torch.cat(predict),
        targets_N=torch.tensor(targets),
        mask_BT=mask,
        banned=torch.tensor(policy.banned_ids),
        dummy_vision=stand_in,
    )


def _check_images(policy: Policy, query: Query, ids: Sequence[int]) -> None:
    features = sum(int(policy.images.get(path, query.qid).grid.prod()) for path in query.images) // policy.merge_size**2
    if ids.count(policy.image_id) != features:
        raise ValueError(
            f"query {query.qid!r}: {ids.count(policy.image_id)} image tokens in the prompt but {features} image "
            f"features; did a file change during the run? {list(query.images)}"
        )


def _blank_image(policy: Policy) -> Vision:
    processor = policy.images.image_processor
    patch = 3 * processor.temporal_patch_size * processor.patch_size**2
    side = policy.merge_size
    return Vision(torch.zeros(side * side, patch), torch.tensor([[1, side, side]]), (0,))


class PolicyForward(nn.Module):
    """The differentiable part of scoring responses, as a module of its own so that DDP and FSDP can wrap it.

    ``chunk_elements`` bounds the float32 logits that exist at once; with more than one chunk they are recomputed in
    the backward pass instead of kept.
    """

    def __init__(self, model: nn.Module, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        super().__init__()
        self.model: Any = model
        self.chunk_elements = chunk_elements

    def forward(
        self, batch: PackedBatch, temperature: float = 1.0, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs [B, T] and entropies [B, T] (nats, float32; 0 outside ``mask_BT``) of the response tokens."""
        vision = encode_images(self.model, Vision(batch.pixel_values, batch.grid_thw, batch.image_order))
        hidden = self.model.model(
            input_ids=batch.input_ids_RS,
            position_ids=batch.positions_3RS,
            attention_mask=batch.attention_mask,
            mm_encoder_outputs=None if batch.dummy_vision else vision,
            use_cache=False,
        ).last_hidden_state
        states_NH = hidden.flatten(0, 1)[batch.predict_N]
        if batch.dummy_vision and vision is not None:
            states_NH = states_NH + _zero_of(vision["image"]).to(states_NH.dtype)
        parts = self._score(states_NH, batch, temperature, with_entropy)
        blank = torch.zeros(batch.mask_BT.shape, dtype=torch.float32, device=states_NH.device)
        logprobs = blank.masked_scatter(batch.mask_BT, parts[0])
        return logprobs, blank.masked_scatter(batch.mask_BT, parts[1]) if with_entropy else None

    def _score(self, states_NH: Tensor, batch: PackedBatch, temperature: float, with_entropy: bool) -> list[Tensor]:
        size = max(1, self.chunk_elements // self.model.lm_head.out_features)
        args = (self.model.lm_head, batch.banned, temperature, with_entropy)
        if len(states_NH) <= size:
            return list(score_tokens(states_NH, batch.targets_N, *args))
        chunks = [
            checkpoint(score_tokens, states, targets, *args, use_reentrant=False)
            for states, targets in zip(states_NH.split(size), batch.targets_N.split(size), strict=True)
        ]
        return [torch.cat(column) for column in zip(*chunks, strict=True)]


def _zero_of(output: Any) -> Tensor:
    """0, with a graph through every feature of ``output``."""
    features = list(output.pooler_output)
    if "deepstack_features" in output:
        features += [feature for layer in output.deepstack_features for feature in layer]
    return 0.0 * torch.stack([feature.float().sum() for feature in features]).sum()


def score_tokens(
    states_NH: Tensor, targets_N: Tensor, lm_head: nn.Module, banned: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, ...]:
    """Log-probs [N] of ``targets_N`` (and entropies [N]) in float32, after temperature and ban."""
    logits_NV = process_logits(lm_head(states_NH), banned, temperature)
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    chosen = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
    if not with_entropy:
        return (chosen,)
    return chosen, -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def process_logits(logits_NV: Tensor, banned: Tensor, temperature: float) -> Tensor:
    """Float32 logits divided by the temperature, banned tokens at about minus infinity."""
    return (logits_NV.float() / temperature).index_fill(-1, banned, BANNED_LOGIT)


def token_logprobs(
    policy: Policy,
    model: nn.Module,
    items: Sequence[tuple[Query, Sequence[int]]],
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    dummy_vision: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs of response tokens given their prompts: (logprobs_BT, mask_BT, entropy_BT or None), nats, float32.

    ``model`` is a ``PolicyForward``, bare or wrapped by accelerate. Responses include their EOS. ``temperature`` is
    the sampler's and must be positive. See ``pack`` for ``dummy_vision`` and errors.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: log-probs need a positive one (a greedy sampler has none)")
    batch = pack(policy, items, dummy_vision=dummy_vision).to(policy.device)
    logprobs_BT, entropy_BT = model(batch, temperature, with_entropy)
    return logprobs_BT, batch.mask_BT, entropy_BT
