"""What test_sharding.py runs in two processes: ``torchrun --nproc-per-node 2 tests/sharded.py FOLDER``.

Each case compares the sharded policy with an unsharded one in the same process, in float64 where nothing else is said,
and returns numbers; rank 0 writes them.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from bounds import in_float64
from transformers import AutoConfig, AutoModelForImageTextToText

from rethinker.config import ModelConfig
from rethinker.datasets.io import load_queries
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.loading import Policy, load_policy, make_policy
from rethinker.policy.sharding import check_equal_over_ranks, gathered, make_mesh, shard, spread_weights, whole
from rethinker.policy.weights import merged_weights

ROOT = Path(__file__).parents[1]
CASES: dict[str, Callable[[], dict[str, Any]]] = {}


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CASES[function.__name__] = function
    return function


def policy(seed: int = 0, dtype: torch.dtype | None = torch.float64, **model: Any) -> Policy:
    torch.manual_seed(seed)
    found = load_policy(ModelConfig(path=str(ROOT / "data" / "tiny-vlm"), **model))
    if dtype:
        found.model.to(dtype)
    return found


def mesh(kind: str = "full"):
    return make_mesh(kind, "cpu", dist.get_world_size(), 1 if kind == "hybrid" else dist.get_world_size())


def make_items(found: Policy, queries: int = 4, each: int = 2, text: int = 2, seed: int = 0) -> list:
    """Random responses to questions with an image, and to some without."""
    rng = random.Random(seed)
    banned = {*found.banned_ids, found.eos_id}
    allowed = [i for i in range(found.model.config.text_config.vocab_size) if i not in banned]
    loaded = list(load_queries(str(ROOT / "data" / "visual_math" / "test.parquet"))[0][:queries])
    loaded += [replace(q, qid=f"text-{q.qid}", question="What is 3 + 4?", images=()) for q in loaded[:text]]
    return [
        (query, (*rng.choices(allowed, k=rng.randint(5, 20)), found.eos_id)) for query in loaded for _ in range(each)
    ]


def loss_of(found: Policy, forward: torch.nn.Module, items: list, tokens: int, dummy: bool = True) -> torch.Tensor:
    logprobs_BT, mask_BT, _ = token_logprobs(found, forward, items, dummy_vision=dummy)
    weights_B = torch.tensor([(len(ids) % 5) - 2.0 for _, ids in items], dtype=logprobs_BT.dtype)
    return -(logprobs_BT * mask_BT * weights_B[:, None]).sum() / tokens


def mine(items: list) -> list:
    """A part of its own for each rank: rank 0's is twice as long, and the last one's has text alone."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    assert ranks == 2
    cut = 2 * len(items) // 3
    return items[:cut] if rank == 0 else items[cut:]


def gradients(forward: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(p.grad).clone() for name, p in forward.named_parameters() if p.grad is not None}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Distance of two sets of tensors by the length of the second."""
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())[:5]
    gap = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    return (gap / sum(float(tensor.double().square().sum()) for tensor in other.values())) ** 0.5


def compare_gradients(
    model: dict[str, Any], options: dict[str, Any], kind: str = "full", parts: tuple[int, int] = (1, 1), **forward: Any
) -> dict[str, Any]:
    """Gradients of one batch: unsharded in one pass, sharded in ``parts`` passes of the two ranks."""
    plain, split = policy(**model), policy(**model)
    items = make_items(plain)
    tokens = sum(len(ids) for _, ids in items)
    reference = PolicyForward(plain.model, plain.encoder, **forward).train()
    expected_loss = loss_of(plain, reference, items, tokens)
    expected_loss.backward()
    sharded = PolicyForward(split.model, split.encoder, **forward).train()
    check_equal_over_ranks(split.model)
    shard(sharded, mesh(kind), **options)
    own, count = mine(items), parts[dist.get_rank()]
    rounds, total = max(parts), 0.0
    for index in range(rounds):
        part = own[index * len(own) // count : (index + 1) * len(own) // count] if index < count else []
        sharded.set_requires_gradient_sync(index == rounds - 1)
        loss = loss_of(split, sharded, part or items[:1], tokens) * bool(part)
        (loss * dist.get_world_size()).backward()
        total += float(loss.detach())
    both = torch.tensor([total], dtype=torch.float64)
    dist.all_reduce(both)
    local = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in sharded.parameters())
    return {
        "loss": abs(float(both) - float(expected_loss.detach())),
        "gradient": apart(gradients(sharded), gradients(reference)),
        "share": local / sum(p.numel() for p in reference.parameters()),
    }


@case
def full():
    return compare_gradients({}, {})


@case
def hybrid():
    return compare_gradients({}, {}, kind="hybrid")


@case
def frozen_tower():
    return compare_gradients({"freeze_vision": True}, {})


@case
def uneven_passes():
    return compare_gradients({}, {}, parts=(3, 1))


@case
def checkpointing():
    return compare_gradients({"gradient_checkpointing": True}, {}, parts=(2, 1))


@case
def chunked_head():
    return compare_gradients({}, {}, chunk_elements=2000)


@case
def lora():
    return compare_gradients({"lora_rank": 4}, {})


@case
def offload():
    return compare_gradients({}, {"offload": True})


@case
def float32():
    return compare_gradients({"dtype": None}, {})


@case
def bfloat16():
    return compare_gradients({"dtype": None}, {"bfloat16": True})


def train(found: Policy, forward: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, alone: bool) -> None:
    ranks = 1 if alone else dist.get_world_size()
    for step in range(steps):
        items = make_items(found, seed=step)
        tokens = sum(len(ids) for _, ids in items)
        (loss_of(found, forward, items if alone else mine(items), tokens) * ranks).backward()
        torch.nn.utils.clip_grad_norm_(forward.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def trainer(found: Policy, sharded: bool):
    forward = PolicyForward(found.model, found.encoder).train()
    if sharded:
        shard(forward, mesh())
    parameters = [p for p in forward.parameters() if p.requires_grad]
    return forward, torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), fused=True)


@case
def ten_steps():
    """Weights after ten steps of AdamW at lr 1e-4, log-probs between the steps, and all of them whole for an engine."""
    plain, split = policy(), policy()
    one, one_optimizer = trainer(plain, False)
    two, two_optimizer = trainer(split, True)
    items = make_items(plain, seed=99)
    gaps = []
    for _ in range(2):
        with torch.no_grad():
            sharded, expected = (token_logprobs(*pair, items)[0] for pair in ((split, two.eval()), (plain, one.eval())))
            gaps.append(float((sharded - expected).abs().max()))
        train(plain, one.train(), one_optimizer, 5, alone=True)
        train(split, two.train(), two_optimizer, 5, alone=False)
    weights = {name: whole(tensor).clone() for name, tensor in two.state_dict().items()}
    ids = torch.tensor([[1, 2, 3]])
    with gathered(two), torch.no_grad():
        inner = split.model.model.language_model(input_ids=ids).last_hidden_state
    expected = plain.model.model.language_model(input_ids=ids).last_hidden_state
    train(split, two.train(), two_optimizer, 1, alone=False)  # and it trains on
    return {
        "weights": max(float((weights[name] - tensor).abs().max()) for name, tensor in one.state_dict().items()),
        "logprobs": gaps,
        "gathered": float((inner - expected).abs().max()),
    }


@case
def streamed_weights():
    """Every weight, adapters added in, whole at its turn."""
    gaps = {}
    for rank in (0, 4):
        plain, split = policy(lora_rank=rank), policy(lora_rank=rank)
        for found in (plain, split):
            generator = torch.Generator().manual_seed(1)
            for name, parameter in found.model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0, 0.05, generator=generator)
        shard(PolicyForward(split.model, split.encoder), mesh())
        expected = {name: tensor.clone() for name, tensor in merged_weights(plain.model)}
        found = {name: whole(tensor).clone() for name, tensor in merged_weights(split.model)}
        gaps[f"rank_{rank}"] = max(float((found[name] - expected[name]).abs().max()) for name in expected)
        assert found.keys() == expected.keys()
    return gaps


@case
def loading():
    """A model made without weights on rank 1: nothing stays without, ties hold, log-probs are those of a whole one."""
    plain = policy(dtype=None)
    state = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()} if dist.get_rank() == 0 else {}
    with init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(ROOT / "data" / "tiny-vlm")
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    model.tie_weights()
    empty = make_policy(model.eval(), plain.processor)
    forward = PolicyForward(empty.model, empty.encoder).eval()
    shard(forward, mesh())
    spread_weights(empty.model, state)
    items = make_items(plain)
    with torch.no_grad():
        found = token_logprobs(empty, forward, items)[0]
        expected = token_logprobs(plain, PolicyForward(plain.model).eval(), items)[0]
    return {
        "meta": sum(tensor.is_meta for tensor in [*forward.parameters(), *forward.buffers()]),
        "tied": empty.model.lm_head.weight is empty.model.model.language_model.embed_tokens.weight,
        "gap": float((found - expected).abs().max()),
    }


@case
def unequal_adapters():
    """Adapters that were drawn apart are found."""
    torch.manual_seed(0)
    found = policy(seed=dist.get_rank(), lora_rank=4)
    try:
        check_equal_over_ranks(found.model)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"error": ""}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    results = {}
    for name, function in CASES.items():
        exact = name not in ("float32", "bfloat16", "loading")
        if exact:
            with in_float64():
                results[name] = function()
        else:
            results[name] = function()
        dist.barrier()
    if dist.get_rank() == 0:
        Path(sys.argv[1], "sharded.json").write_text(json.dumps(results, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
