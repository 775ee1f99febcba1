"""What test_sharding.py runs: ``torchrun --nproc-per-node 2 tests/sharded.py FOLDER [--float32] [CASE ...]``.

Each case compares the sharded policy with an unsharded one in the same process, in float64 where nothing else is said,
and returns numbers; rank 0 writes them.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bounds import in_float64

from rethinker.config import ModelConfig
from rethinker.datasets.io import load_queries
from rethinker.policy.forward import BaseForward, PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy
from rethinker.policy.policy import Policy
from rethinker.policy.sharding import (
    check_equal_over_ranks,
    full_weights,
    gathered,
    is_sharded,
    make_mesh,
    shard,
    shard_loaded,
    whole,
)
from rethinker.policy.weights import merged_weights
from rethinker.rundir.phases import Phases

ROOT = Path(__file__).parents[1]
MODEL = os.environ.get("SHARDED_MODEL", str(ROOT / "data" / "tiny-vlm"))
DTYPE = torch.float64  # of what is compared
LATER = ("ten_steps_hybrid", "ten_steps_bfloat16")  # where they are asked for
CASES: dict[str, Callable[[], dict[str, Any]]] = {}


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CASES[function.__name__] = function
    return function


def policy(seed: int = 0, **model: Any) -> Policy:
    torch.manual_seed(seed)
    found = load_policy(ModelConfig(path=MODEL, **model))
    found.model.to(DTYPE)
    return found


@contextmanager
def in_float32() -> Iterator[None]:
    global DTYPE
    before, DTYPE = DTYPE, torch.float32
    yield
    DTYPE = before


def fill_adapters(found: Policy) -> None:
    """Adapters that add something, the same on all ranks; fresh ones add nothing."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in found.model.named_parameters():
        if "lora_B" in name and not parameter.is_meta:
            parameter.data.normal_(0, 0.05, generator=generator)


def mesh(kind: str = "full"):
    return make_mesh(kind, "cpu", dist.get_world_size(), 1 if kind == "hybrid" else dist.get_world_size())


def make_items(found: Policy, queries: int = 4, each: int = 2, text: int = 2, seed: int = 0) -> list:
    """Random responses to questions with an image, and to some without."""
    rng = random.Random(seed)
    banned = {*found.banned_ids, found.eos_id}
    allowed = [i for i in range(found.model.config.get_text_config().vocab_size) if i not in banned]
    loaded = list(load_queries(str(ROOT / "data" / "visual_math" / "test.parquet"))[0][:queries])
    loaded += [replace(q, qid=f"text-{q.qid}", question="What is 3 + 4?", images=()) for q in loaded[:text]]
    return [
        (query, (*rng.choices(allowed, k=rng.randint(5, 20)), found.eos_id)) for query in loaded for _ in range(each)
    ]


def loss_of(
    found: Policy, forward: torch.nn.Module, items: list, tokens: int, reference: torch.nn.Module | None = None
) -> torch.Tensor:
    logprobs_BT, mask_BT, _ = token_logprobs(found, forward, items, dummy_vision=True)
    weights_B = torch.tensor([(len(ids) % 5) - 2.0 for _, ids in items], dtype=logprobs_BT.dtype)
    if reference is not None:
        with torch.no_grad():
            reference_BT, _, _ = token_logprobs(found, reference, items)
        return -(logprobs_BT * reference_BT * mask_BT * weights_B[:, None]).sum() / tokens
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


def reference_of(found: Policy, forward: PolicyForward, wanted: bool) -> torch.nn.Module | None:
    """Of LoRA the policy without its adapters, else other weights, sharded where the policy is."""
    if not wanted:
        return None
    if any("lora_" in name for name, _ in found.model.named_parameters()):
        return BaseForward(forward)
    other = policy(seed=0, freeze_vision=True)
    other.model.requires_grad_(False)
    for parameter in other.model.parameters():
        parameter.mul_(1.1)
    reference = PolicyForward(other.model).eval()
    if is_sharded(forward):
        shard(reference, mesh())
    return reference


def compare_gradients(
    model: dict[str, Any],
    options: dict[str, Any],
    kind: str = "full",
    parts: tuple[int, int] = (1, 1),
    with_reference: bool = False,
    **forward: Any,
) -> dict[str, Any]:
    """Gradients of one batch: unsharded in one pass, sharded in ``parts`` passes of the two ranks."""
    plain, split = policy(**model), policy(**model)
    for found in (plain, split):
        fill_adapters(found)
    items = make_items(plain)
    tokens = sum(len(ids) for _, ids in items)
    reference = PolicyForward(plain.model, plain.encoder, **forward).train()
    other = reference_of(plain, reference, with_reference)
    expected_loss = loss_of(plain, reference, items, tokens, other)
    expected_loss.backward()
    sharded = PolicyForward(split.model, split.encoder, **forward).train()
    check_equal_over_ranks(split.model)
    shard(sharded, mesh(kind), **options)
    split_other = reference_of(split, sharded, with_reference)
    own, count = mine(items), parts[dist.get_rank()]
    rounds, total = max(parts), 0.0
    for index in range(rounds):
        part = own[index * len(own) // count : (index + 1) * len(own) // count] if index < count else []
        loss = loss_of(split, sharded, part or items[:1], tokens, split_other) * bool(part)
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
def reference():
    """Its pass lies between the policy's and the backward one, which computes the layers anew."""
    return compare_gradients({"gradient_checkpointing": True}, {}, parts=(2, 1), with_reference=True)


@case
def lora_reference():
    return compare_gradients({"lora_rank": 4, "gradient_checkpointing": True}, {}, parts=(2, 1), with_reference=True)


@case
def offload():
    return compare_gradients({}, {"offload": True})


@case
def float32():
    return compare_gradients({}, {})


@case
def bfloat16():
    return compare_gradients({}, {"bfloat16": True})


def train(
    found: Policy, forward: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, alone: bool
) -> list[float]:
    """The norms of the gradients."""
    ranks = 1 if alone else dist.get_world_size()
    norms = []
    for step in range(steps):
        items = make_items(found, seed=step)
        tokens = sum(len(ids) for _, ids in items)
        (loss_of(found, forward, items if alone else mine(items), tokens) * ranks).backward()
        norms.append(float(whole(torch.nn.utils.clip_grad_norm_(forward.parameters(), 1.0))))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def trainer(found: Policy, kind: str, **options: Any):
    forward = PolicyForward(found.model, found.encoder).train()
    if kind != "none":
        shard(forward, mesh(kind), **options)
    parameters = [p for p in forward.parameters() if p.requires_grad]
    return forward, torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), fused=True)


def compare_ten_steps(kind: str = "full", **options: Any) -> dict[str, Any]:
    """Weights after ten steps of AdamW at lr 1e-4, norms that were clipped, log-probs between the steps."""
    plain, split = policy(), policy()
    one, one_optimizer = trainer(plain, "none")
    two, two_optimizer = trainer(split, kind, **options)
    items = make_items(plain, seed=99)
    gaps, norms = [], []
    for _ in range(2):
        with torch.no_grad():
            sharded, expected = (token_logprobs(*pair, items)[0] for pair in ((split, two.eval()), (plain, one.eval())))
            gaps.append(float((sharded - expected).abs().max()))
        expected_norms = train(plain, one.train(), one_optimizer, 5, alone=True)
        pairs = zip(expected_norms, train(split, two.train(), two_optimizer, 5, alone=False), strict=True)
        norms += [abs(found / expected - 1) for expected, found in pairs]
    weights = {name: whole(tensor).clone() for name, tensor in two.state_dict().items()}
    return {
        "weights": max(float((weights[name] - tensor).abs().max()) for name, tensor in one.state_dict().items()),
        "logprobs": gaps,
        "norms": max(norms),
    }


@case
def ten_steps():
    return compare_ten_steps()


@case
def ten_steps_hybrid():
    return compare_ten_steps("hybrid")


@case
def ten_steps_bfloat16():
    return compare_ten_steps(bfloat16=True)


@case
def whole_for_an_engine():
    """Before the first pass and between steps, in the shards' type and in that of the passes."""
    gaps = {}
    for bfloat16 in (False, True):
        plain, split = policy(), policy()
        two, optimizer = trainer(split, "full", bfloat16=bfloat16)
        ids = torch.tensor([[1, 2, 3]])
        for when in ("first", "between"):
            with gathered(two), torch.no_grad():
                inner = split.model.model.language_model(input_ids=ids).last_hidden_state
                canary = token_logprobs(split, two.eval(), make_items(split)[:2])[0]
            with torch.no_grad():
                again = token_logprobs(split, two.eval(), make_items(split)[:2])[0]
            expected = plain.model.model.language_model(input_ids=ids).last_hidden_state
            assert torch.equal(canary, again)
            if when == "first":
                gaps[str(bfloat16)] = float((inner - expected).detach().abs().max() / expected.detach().abs().max())
            train(split, two.train(), optimizer, 1, alone=False)  # and it trains on
    return gaps


@case
def streamed_weights():
    """Every weight, adapters added in, whole at its turn."""
    gaps = {}
    for rank in (0, 4):
        plain, split = policy(lora_rank=rank), policy(lora_rank=rank)
        for found in (plain, split):
            fill_adapters(found)
        shard(PolicyForward(split.model, split.encoder), mesh())
        expected = {name: tensor.clone() for name, tensor in merged_weights(plain.model)}
        found = {name: tensor.clone() for name, tensor in full_weights(split.model, bucket_bytes=100_000)}
        gaps[f"rank_{rank}"] = max(float((found[name] - expected[name]).abs().max()) for name in expected)
        assert found.keys() == expected.keys()
        assert all(tensor.dtype == torch.bfloat16 for _, tensor in full_weights(split.model, dtype=torch.bfloat16))
    return gaps


@case
def loading():
    """Rank 0 reads, rank 1 is made without weights and draws other adapters: nothing stays without, ties hold,
    log-probs are those of a whole model."""
    results = {}
    options: dict[str, dict[str, Any]] = {"full": {}, "hybrid": {}, "frozen_tower": {"freeze_vision": True}}
    options |= {"lora": {"lora_rank": 4}, "offloaded": {"offload": True, "freeze_vision": True}}
    here = os.environ["LOCAL_WORLD_SIZE"]
    for name, model in options.items():
        plain = policy(**{**model, "sharding": "full"})
        torch.manual_seed(dist.get_rank())
        config = ModelConfig(path=MODEL, sharding="hybrid" if name == "hybrid" else "full", **model)
        found = load_policy(config, weights="waiting" if dist.get_rank() == 0 else "none")
        for each in (plain, found):
            fill_adapters(each)
        forward = PolicyForward(found.model, found.encoder).eval()
        os.environ["LOCAL_WORLD_SIZE"] = "1" if name == "hybrid" else here
        shard_loaded(forward, config, found.device)
        items = make_items(plain)
        with torch.no_grad():
            sharded = token_logprobs(found, forward, items)[0]
            expected = token_logprobs(plain, PolicyForward(plain.model).eval(), items)[0]
        trained = [name for name, parameter in plain.model.named_parameters() if parameter.requires_grad]
        assert trained == [name for name, parameter in found.model.named_parameters() if parameter.requires_grad]
        results[name] = {
            "meta": sum(tensor.is_meta for tensor in [*forward.parameters(), *forward.buffers()]),
            "tied": found.model.lm_head.weight is found.family.language_model(found.model).embed_tokens.weight,
            "gap": float((sharded - expected).abs().max()),
        }
    os.environ["LOCAL_WORLD_SIZE"] = here
    return results


def inequality(model):
    """What ``check_equal_over_ranks`` says; "" where it finds nothing."""
    try:
        check_equal_over_ranks(model)
    except RuntimeError as error:
        return str(error)
    return ""


@case
def unequal_adapters():
    """Adapters that were drawn apart are found."""
    torch.manual_seed(0)
    found = policy(seed=dist.get_rank(), lora_rank=4)
    return {"error": inequality(found.model)}


@case
def unequal_replicas():
    """Shards that are to be the same on two machines, and are not."""
    found = policy()
    forward = PolicyForward(found.model, found.encoder)
    shard(forward, mesh("hybrid"))
    check_equal_over_ranks(found.model)
    if dist.get_rank() == 1:
        next(parameter for parameter in forward.parameters()).data.mul_(1.5)
    return {"error": inequality(found.model)}


@case
def time_out():
    """A collective that one rank never enters: the error says what each rank does."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    phases = Phases(Path(sys.argv[1], "phases"), dist.get_rank(), 2)
    phases.enter(["train", "rollout"][dist.get_rank()] + " of episode 3")
    dist.barrier()
    said = ""
    if dist.get_rank() == 0:
        try:
            with phases.explaining():
                dist.all_reduce(torch.zeros(1), group=group)
        except RuntimeError as error:
            said = str(error)
    dist.barrier()
    return {"error": said}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    names = [name for name in sys.argv[2:] if name != "--float32"]
    results = {}
    for name in names or [name for name in CASES if name not in LATER]:
        exact = "--float32" not in sys.argv and name not in ("float32", "bfloat16", "ten_steps_bfloat16", "loading")
        with in_float64() if exact else in_float32():
            results[name] = CASES[name]()
        dist.barrier()
    if dist.get_rank() == 0:
        Path(sys.argv[1], "sharded.json").write_text(json.dumps(results, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
