"""From a query to the text that the policy reads: the one code path of pretraining, training, evaluation and engines.

A prompt is a single user turn in the processor's own chat template. Images are named by one placeholder token each;
expanding it to the image's tokens is the processor's (or the engine's) work.
"""

from __future__ import annotations

from typing import Any

from rethinker.types import Query

IMAGE_PLACEHOLDER = "<image>"  # in a question (ViRL39K's convention)


def chat_messages(query: Query, suffix: str = "", hint: str = "") -> list[dict[str, Any]]:
    """The conversation that asks ``query``: one user turn, and no system turn of our own.

    The user turn is the question with its images where their ``<image>`` stands, then ``suffix`` exactly as it is
    (the official code's begins with its own blank line), then ``hint`` as a paragraph of its own (the paper's
    reminder to reflect). Images without a placeholder come first, so the images stand in the text in the order of
    ``query.images``, the order in which the processor takes their pixels. Text-only queries are plain strings.

    Raises:
        ValueError: the question has more placeholders than the query has images.
    """
    pieces = query.question.split(IMAGE_PLACEHOLDER)
    spare = len(query.images) - (len(pieces) - 1)
    if spare < 0:
        raise ValueError(
            f"query {query.qid!r}: {len(pieces) - 1} {IMAGE_PLACEHOLDER} placeholders, but {len(query.images)} images; "
            "give an image for each, or remove placeholders"
        )
    pieces[-1] += suffix + (f"\n\n{hint.strip()}" if hint.strip() else "")
    if not query.images:
        return [{"role": "user", "content": pieces[0]}]
    content: list[dict[str, Any]] = [{"type": "image"} for _ in range(spare)]
    for index, text in enumerate(pieces):
        if index:
            content.append({"type": "image"})
        if text:
            content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def prompt_text(processor: Any, query: Query, suffix: str = "", hint: str = "") -> str:
    """``query`` in the chat template of ``processor`` (or of a tokenizer that has one), up to where the answer begins.

    Every image is one unexpanded placeholder (Qwen: ``<|image_pad|>``).
    """
    return render(processor, chat_messages(query, suffix, hint), add_generation_prompt=True)


def render(processor: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """``messages`` in the chat template of ``processor``. Templates that read lists of pieces alone (SmolVLM's) would
    drop what is a plain string: they get it as a list of one."""
    if type(processor).__name__ == "SmolVLMProcessor":
        options["processor_kwargs"] = {"padding": False}  # without any, it warns of its own defaults at every call
    text = str(processor.apply_chat_template(messages, tokenize=False, **options))
    plain = [message["content"] for message in messages if isinstance(message["content"], str)]
    if all(content.strip() in text for content in plain):
        return text
    pieces = [
        {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content := message["content"], str)
        else message
        for message in messages
    ]
    return str(processor.apply_chat_template(pieces, tokenize=False, **options))
