"""LoRA: the policy before training is the policy without its adapters; merged weights exist one at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from memory import watch_merged
from safetensors.torch import load_file
from tiny_training import SMALL, random_samples

from rethinker.config import ModelConfig, load_config
from rethinker.grpo import kl_penalty
from rethinker.policy import lora, weights
from rethinker.policy.forward import BaseForward, PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy, save_model
from rethinker.policy.policy import Policy
from rethinker.run import TrainingRun

pytestmark = pytest.mark.numerics


def adapted_policy(folder: Path, **options) -> Policy:
    """A policy whose adapters change something (a fresh lora_B is zero)."""
    policy = load_policy(ModelConfig(path=str(folder), lora_rank=4, **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


@pytest.fixture(scope="module")
def policy(tiny_folder) -> Policy:
    return adapted_policy(tiny_folder)


@pytest.fixture(scope="module")
def items(policy, queries):
    return [(sample.query, sample.response.token_ids) for sample in random_samples(policy, queries, 10)]


def gradients(policy) -> list[torch.Tensor]:
    found = [p.grad for p in policy.model.parameters() if p.requires_grad]
    policy.model.zero_grad()
    return found


# -- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_adapters_it_is_the_base_bit_for_bit(tiny_folder, items, checkpointing):
    """Between the policy's forward and backward pass, as an update asks for it; the policy's own gradient stays."""
    policy = adapted_policy(tiny_folder, gradient_checkpointing=checkpointing)
    base = load_policy(ModelConfig(path=str(tiny_folder)))
    second = PolicyForward(base.model.requires_grad_(False)).eval()
    forward = PolicyForward(policy.model, policy.encoder).train()
    reference = BaseForward(PolicyForward(policy.model, policy.encoder))
    found = []
    for other in (second, reference):
        own, _, _ = token_logprobs(policy, forward, items)
        with torch.no_grad():
            before, mask_BT, _ = token_logprobs(policy, other, items)
        kl_penalty(own, before)[mask_BT].sum().backward()
        found.append((own, before, gradients(policy)))
    (own, before, gradient), (same_own, same_before, same_gradient) = found
    assert torch.equal(before, same_before) and torch.equal(own, same_own)
    assert all(map(torch.equal, gradient, same_gradient)) and len(gradient) == len(same_gradient) > 10
    assert (own - before).abs().max() > 1e-2


def test_an_error_inside_leaves_the_adapters_on(policy, items):
    forward = PolicyForward(policy.model, policy.encoder)
    with torch.no_grad():
        expected, _, _ = token_logprobs(policy, forward, items)
        with pytest.raises(ZeroDivisionError), lora.adapters_off(policy.model):
            raise ZeroDivisionError
        found, _, _ = token_logprobs(policy, forward, items)
    assert torch.equal(found, expected)


def test_a_run_has_no_second_model(tmp_path, guesser, world, untouched_process):
    """Its KL is exactly 0 as long as the adapters are as they were made."""
    config = load_config(
        None,
        [
            *SMALL,
            f"runs_dir={tmp_path}",
            f"model.path={guesser}",
            f"data.train={world / 'train.parquet'}",
            "rollout.engine=transformers",
            "model.lora_rank=4",
            "grpo.kl_coef=0.1",
            "replay.mode=grpo",
            "queries_per_episode=4",
            "optim.lr=1e-2",
            "stages=[{name: train, episodes: 3}]",
        ],
    )
    run = TrainingRun(config)
    own = {id(parameter) for parameter in run.policy.model.parameters()}
    assert isinstance(run.reference, BaseForward) and {id(p) for p in run.reference.parameters()} == own
    assert run.run() == "finished"
    lines = map(json.loads, (config.folder / "metrics.jsonl").read_text().splitlines())
    kls = [line["loss/kl"] for line in lines if line["record"] == "step"]
    assert kls[0] == 0.0 and len(kls) > 2 and max(kls) > 1e-6


# -- merged weights ---------------------------------------------------------------------------------------------------


def test_a_merged_weight_is_gone_when_the_next_one_is_written(policy, tmp_path, monkeypatch):
    counts = watch_merged(monkeypatch, weights)
    save_model(policy, tmp_path / "model")
    assert len(counts) == len(lora.adapted_layers(policy.model)) == 21
    assert max(counts) <= 2, counts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_is_the_one_that_transformers_writes(tiny_folder, tmp_path, dtype):
    """The same names, values and configs; the tiny model's head is tied, and written once."""
    policy = adapted_policy(tiny_folder)
    policy.model.to(getattr(torch, dtype))
    save_model(policy, tmp_path / "ours")
    policy.model.save_pretrained(tmp_path / "theirs", state_dict=dict(weights.merged_weights(policy.model)))
    policy.processor.save_pretrained(tmp_path / "theirs")
    names = [{path.name for path in (tmp_path / place).iterdir()} for place in ("ours", "theirs")]
    assert names[0] == names[1]
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    ours, theirs = (load_file(tmp_path / place / "model.safetensors") for place in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and "lm_head.weight" not in ours
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)
    again = load_policy(ModelConfig(path=str(tmp_path / "ours")))
    assert not lora.adapted_layers(again.model)


def test_a_model_without_adapters_is_saved_as_by_transformers(tiny_folder, tmp_path):
    policy = load_policy(ModelConfig(path=str(tiny_folder)))
    save_model(policy, tmp_path / "copy")
    policy.model.save_pretrained(tmp_path / "theirs")
    policy.processor.save_pretrained(tmp_path / "theirs")
    files = [sorted(path.name for path in (tmp_path / place).iterdir()) for place in ("copy", "theirs")]
    assert files[0] == files[1]
    start, copy = (load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", tmp_path / "copy"))
    assert start.keys() == copy.keys() and all(torch.equal(start[name], copy[name]) for name in start)


@pytest.mark.parametrize("rank", [0, 4])
def test_weights_in_files_of_bounded_size(tiny_folder, tmp_path, rank):
    """The files and the index that transformers makes of the same bound, and it opens them."""
    policy = adapted_policy(tiny_folder) if rank else load_policy(ModelConfig(path=str(tiny_folder)))
    save_model(policy, tmp_path / "copy", file_bytes=200_000)
    files = sorted((tmp_path / "copy").glob("model-*.safetensors"))
    assert len(files) > 3 and not (tmp_path / "copy" / "model.safetensors").exists()
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        held = load_file(file)
        assert sum(tensor.nbytes for tensor in held.values()) <= 200_000 or len(held) == 1
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(file).values())
    again = load_policy(ModelConfig(path=str(tmp_path / "copy")))
    expected = dict(weights.merged_weights(policy.model))
    assert all(torch.equal(expected[name], weight) for name, weight in weights.merged_weights(again.model))


def test_adapters_alone_are_a_peft_folder(policy, tiny_folder, items, tmp_path):
    """PEFT puts them on the base checkpoint, and gets the policy's log-probs."""
    from peft import PeftModel

    lora.save_adapters(tmp_path / "adapter", policy.model)
    base = load_policy(ModelConfig(path=str(tiny_folder)))
    without, _, _ = token_logprobs(base, PolicyForward(base.model, base.encoder).eval(), items)
    PeftModel.from_pretrained(base.model, tmp_path / "adapter")  # in place
    again, _, _ = token_logprobs(base, PolicyForward(base.model, base.encoder).eval(), items)
    wanted, _, _ = token_logprobs(policy, PolicyForward(policy.model, policy.encoder).eval(), items)
    assert torch.equal(again, wanted) and not torch.allclose(without, wanted)
