"""The policy: a vision-language model with its processor, its prompts and its banned tokens."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rethinker.policy.families import Family, family_of
from rethinker.policy.images import ImageStore
from rethinker.policy.prompt import prompt_text
from rethinker.policy.vision import ImageEncoder
from rethinker.types import Query

PROMPTS_HELD = 4096  # prompts whose ids and positions are kept: some 25 kB each at 1,280 image tokens


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A tokenised prompt.

    ``unexpanded`` has one placeholder per image, ``ids`` its tokens as the model reads them. ``positions`` [3,
    len(ids)] int32: M-RoPE positions in time, height and width (three times the same where a family counts along the
    text); the response continues at ``next_position``, the same in all three.
    """

    unexpanded: tuple[int, ...]
    ids: tuple[int, ...]
    positions: Tensor
    next_position: int


@dataclass
class Policy:
    """A model and what belongs to it; ``model`` is the Hugging Face module itself, never a wrapper.

    ``eos_ids``: the tokens that end a response, the chat template's end of turn first. ``banned_ids``: every other
    special token, and every row of the embedding without a token (Qwen has 271 among 151,936); they have probability
    zero in sampling and in log-probs, because a sampled image token would break the next forward pass, and a row
    without a token has no text.
    """

    model: PreTrainedModel
    processor: Any
    tokenizer: Any
    images: ImageStore
    encoder: ImageEncoder
    device: torch.device  # where it computes; offloaded weights rest elsewhere
    banned_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    pad_id: int
    image_id: int
    prompt_suffix: str = ""
    prompt_hint: str = ""
    _prompts: OrderedDict[Query, PromptIds] = field(default_factory=OrderedDict, repr=False)
    _lock: Any = field(
        default_factory=threading.Lock, repr=False
    )  # of prompts and tokenizer: an engine's threads use them too

    @property
    def eos_id(self) -> int:
        """The token that ends a response as the chat template does."""
        return self.eos_ids[0]

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with response that the model takes."""
        config: Any = self.model.config
        return int(config.get_text_config().max_position_embeddings)

    @property
    def family(self) -> Family:
        """What is peculiar to the model's family."""
        return family_of(self.model)

    @property
    def merge_size(self) -> int:
        """Side of the square of an image's cells that becomes one token."""
        return self.family.merge_size(self.processor)

    def prompt(self, query: Query) -> PromptIds:
        """The prompt of ``query``, kept for the next call. Raises ValueError or ImageError naming the qid."""
        with self._lock:
            held = self._prompts.get(query)
            if held is not None:
                self._prompts.move_to_end(query)
                return held
            prompt = self._prompt(query)
            self._prompts[query] = prompt
            if len(self._prompts) > PROMPTS_HELD:
                self._prompts.popitem(last=False)
            return prompt

    def _prompt(self, query: Query) -> PromptIds:
        text = prompt_text(self.processor, query, self.prompt_suffix, self.prompt_hint)
        unexpanded = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        family = self.family
        placeholder = family.placeholder(self.model, self.processor)
        if unexpanded.count(placeholder) != len(query.images):
            raise ValueError(
                f"query {query.qid!r}: {unexpanded.count(placeholder)} image tokens in the prompt for "
                f"{len(query.images)} images; check the <image> placeholders of the question"
            )
        images = [self.images.get(path, query.qid) for path in query.images]
        ids = family.expand(self.processor, text, unexpanded, placeholder, images)
        positions = family.positions(self.model, ids, self.image_id, [image.grid for image in images])
        return PromptIds(
            unexpanded=tuple(unexpanded),
            ids=tuple(ids),
            positions=positions.to(torch.int32),
            next_position=int(positions.max()) + 1,
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of a response: no special tokens, not even where the text spells one."""
        with self._lock:  # the option is the tokenizer's own while it works: prompts must not be made meanwhile
            return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
