"""What ends a response: the chat template, the tokenizer and generation_config.json must agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_training import tiny_policy

from rethinker.config import ModelConfig
from rethinker.config.schema import ConfigError
from rethinker.policy.loading import load_processor
from rethinker.policy.response_ends import end_of_turn


def changed(source: Path, target: Path, **files: dict) -> Path:
    """A copy of a checkpoint with other entries in its JSON files."""
    shutil.copytree(source, target)
    for name, entries in files.items():
        path = target / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return target


def with_template(folder: Path, old: str, new: str) -> Path:
    path = folder / "chat_template.jinja"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return folder


@pytest.fixture(scope="module")
def ids(tiny_folder):
    tokenizer = tiny_policy(tiny_folder).tokenizer
    return {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}


def test_the_templates_end_of_turn_is_the_eos(tiny_folder, ids):
    policy = tiny_policy(tiny_folder)
    assert policy.eos_ids == (ids["<|im_end|>"],) and policy.eos_id == end_of_turn(policy.processor)
    assert ids["<|endoftext|>"] in policy.banned_ids and ids["<|im_end|>"] not in policy.banned_ids


def test_an_eos_that_ends_no_turn_is_an_error_with_the_fix(tiny_folder, tmp_path, ids):
    """As with tokenizers of base models under an instruct template."""
    end = ids["<|endoftext|>"]
    folder = changed(
        tiny_folder,
        tmp_path / "base",
        tokenizer_config={"eos_token": "<|endoftext|>"},
        generation_config={"eos_token_id": end},
    )
    with pytest.raises(ConfigError) as error:
        tiny_policy(folder)
    assert str(folder) in str(error.value)
    assert f"ends a turn by '<|im_end|>' (id {ids['<|im_end|>']}), but EOS is '<|endoftext|>'" in str(error.value)
    assert 'Set "eos_token": "<|im_end|>" in tokenizer_config.json' in str(error.value)
    for fixed in (
        {"tokenizer_config": {"eos_token": "<|im_end|>"}},
        {"generation_config": {"eos_token_id": [end, ids["<|im_end|>"]]}},
    ):
        mended = changed(folder, tmp_path / next(iter(fixed)), **fixed)
        assert tiny_policy(mended).eos_ids == (ids["<|im_end|>"], end)


def test_several_eos_ids(tiny_folder, tmp_path, ids):
    """Qwen's own generation_config.json has two."""
    both = [ids["<|endoftext|>"], ids["<|im_end|>"]]
    policy = tiny_policy(changed(tiny_folder, tmp_path / "two", generation_config={"eos_token_id": both}))
    assert policy.eos_ids == (both[1], both[0]) and policy.eos_id == both[1]
    assert not set(both) & set(policy.banned_ids)


def test_a_template_without_special_tokens_says_nothing(tiny_folder, tmp_path):
    folder = with_template(changed(tiny_folder, tmp_path / "plain"), "<|im_end|>", "")
    folder = with_template(folder, "<|im_start|>", "")
    assert end_of_turn(load_processor(ModelConfig(path=str(folder)))) is None
    assert tiny_policy(folder).eos_ids
