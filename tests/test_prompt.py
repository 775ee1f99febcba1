"""Prompts: images where they belong, one placeholder each, Qwen's format, the same for every user of them."""

from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor

from rethinker.policy.prompt import chat_messages, prompt_text
from rethinker.types import Query

PAD = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def processor(tiny_folder: Path):
    return AutoProcessor.from_pretrained(tiny_folder)


def layout(query: Query, **options: str) -> list[str]:
    """The user turn's pieces in order: text, or "[image]"."""
    (message,) = chat_messages(query, **options)
    assert message["role"] == "user"
    return ["[image]" if part["type"] == "image" else part["text"] for part in message["content"]]


def test_images_stand_where_their_placeholders_are() -> None:
    query = Query("q", "<image>Left or <image>?", "A", ("1.png", "2.png"))
    assert layout(query) == ["[image]", "Left or ", "[image]", "?"]
    assert layout(Query("q", "See <image>", "A", ("1.png",))) == ["See ", "[image]"]


def test_images_without_placeholder_come_first() -> None:
    assert layout(Query("q", "Which?", "A", ("1.png", "2.png"))) == ["[image]", "[image]", "Which?"]
    assert layout(Query("q", "A <image> b", "A", ("1.png", "2.png"))) == ["[image]", "A ", "[image]", " b"]


def test_text_only_queries_are_plain_strings() -> None:
    assert chat_messages(Query("q", "What is 1+1?", "2")) == [{"role": "user", "content": "What is 1+1?"}]


def test_suffix_as_it_is_and_hint_as_a_paragraph() -> None:
    query = Query("q", "<image>Which?", "A", ("1.png",))
    assert layout(query, suffix="\n\nThink.", hint="Look twice. ") == ["[image]", "Which?\n\nThink.\n\nLook twice."]
    bare = Query("q", "See <image>", "A", ("1.png",))
    assert layout(bare, suffix=" Think.") == ["See ", "[image]", " Think."]


def test_too_many_placeholders_name_the_query() -> None:
    with pytest.raises(ValueError, match="'q7': 2 <image> placeholders, but 1 images"):
        chat_messages(Query("q7", "<image><image>", "A", ("1.png",)))


def test_the_text_is_qwens_format_with_unexpanded_images(processor) -> None:
    query = Query("q", "<image>Left or <image>?", "A", ("1.png", "2.png"))
    expected = f"<|im_start|>user\n{PAD}Left or {PAD}?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(processor, query) == expected
    assert prompt_text(processor.tokenizer, query) == expected
    text_only = "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(processor, Query("q", "What is 1+1?", "2")) == text_only


def test_the_template_takes_whole_conversations(processor) -> None:
    """As vLLM's server sends them: a system turn, image_url parts, an answer."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "Yes."},
    ]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False)
    turns = f"<|im_start|>user\n{PAD}?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    assert text == f"<|im_start|>system\nBe brief.<|im_end|>\n{turns}"


def test_the_processor_expands_each_placeholder_to_its_images_tokens(processor) -> None:
    query = Query("q", "<image>Left or <image>?", "A", ("1.png", "2.png"))
    images = [Image.new("RGB", (64, 64)), Image.new("RGB", (96, 48))]
    ids = processor(text=[prompt_text(processor, query)], images=images)["input_ids"][0]
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert list(ids).count(pad) == (64 // 16) ** 2 + (96 // 16) * (48 // 16)
