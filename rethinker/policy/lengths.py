"""Prompts that the model's context has no room for: found before a run, from text and image headers alone."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from rethinker.policy.archive import opened
from rethinker.policy.policy import Policy
from rethinker.policy.prompt import prompt_text
from rethinker.types import Query

LONG = 2048  # bytes from which a text is tokenised: an engine has room for as many tokens beside the largest images


class PromptRoom:
    """Whether a query's prompt and a response of ``max_new_tokens`` fit into the model's context.

    No image is decoded, and a text is tokenised only if it could be too long or has more than ``LONG`` bytes.
    ``longest``: tokens of the longest prompt that fits, where a text that was not tokenised counts its bytes.
    """

    def __init__(self, policy: Policy, max_new_tokens: int) -> None:
        self.policy = policy
        self.max_new_tokens = max_new_tokens
        self.longest = 0

    def __call__(self, query: Query) -> tuple[str, str] | None:
        """(reason, detail) for a query that has no room, else None."""
        images = sum(map(self._image_tokens, query.images))
        tokens = self._tokens(query, images)
        if tokens > self.room:
            of_images = f" ({images} of them its images')" if images else ""
            return "prompt too long", (
                f"{tokens} tokens{of_images} and a response of rollout.max_new_tokens={self.max_new_tokens} exceed the "
                f"model's context of {self.policy.context}"
            )
        self.longest = max(self.longest, tokens)
        return None

    def at_most(self, query: Query) -> tuple[str, str] | None:
        """As a call, but without a look at images: they count in ``longest`` as the largest that the processor makes,
        and a query that has some always fits."""
        if not query.images:
            return self(query)
        tokens = self._tokens(query, len(query.images) * self.policy.family.most_tokens(self.policy.processor))
        self.longest = max(self.longest, min(tokens, self.room))
        return None

    @property
    def room(self) -> int:
        """Tokens of the longest prompt that there is room for."""
        return self.policy.context - self.max_new_tokens

    def _tokens(self, query: Query, images: int) -> int:
        """Of the prompt, of them ``images`` its images': exact if it could be too long or has a long text, else at
        most so many."""
        policy = self.policy
        text = prompt_text(policy.processor, query, policy.prompt_suffix, policy.prompt_hint)
        size = len(text.encode())  # a token is a byte or more
        if size + images <= self.room and size <= LONG:
            return size + images
        return len(policy.tokenizer(text, add_special_tokens=False)["input_ids"]) + images - len(query.images)

    def _image_tokens(self, path: str | Path) -> int:
        with opened(path) as file, Image.open(file) as image:  # reads the header
            width, height = image.size
        return self.policy.family.tokens_of(self.policy.processor, height, width)
