"""What to change where a case does not fit, and what would make it faster: changes are tried, not guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from rethinker.lab.plan.case import PER_NODE, Case
from rethinker.lab.plan.memory import GIB, Moment, fits, kv_tokens, longest, moments, utilization
from rethinker.lab.plan.timing import Seconds, episode, overlapped, total

Change = Callable[[Case], tuple[str, Case] | None]
MOST_GPUS = 1024
LEAST_TOKENS = 1024  # of a micro-batch


def failing(case: Case) -> list[Moment]:
    """The moments that find no room, or have an engine that cannot be there."""
    return [moment for moment in moments(case) if not fits(case, moment)]


def repairs(case: Case) -> list[str]:
    """Changes after which the case fits: single ones of the same training where there are, else several together, on
    more GPUs if need be; then such that train less."""
    if not failing(case):
        return []
    told = [_told([text], changed) for text, changed in _changed(case, SAME) if not failing(changed)]
    if told:
        return told
    texts, together = _together(case)
    if not failing(together):
        return [_told(texts, together)]
    told = [_told([*texts, text], changed) for text, changed in _more_gpus(together)][:1]
    for text, changed in _changed(case, LESS):
        more, fitting = _together(changed)
        if not failing(fitting):
            told.append(_told([text, *more], fitting))
    return told or [f"nothing that is known here, on up to {MOST_GPUS} GPUs"]


def _together(case: Case) -> tuple[list[str], Case]:
    """Changes of the same training, one upon the other, as long as memory is missing and each helps."""
    texts: list[str] = []
    first = (_own_engines, _servers) if case.refused else ()  # or nothing else would help
    for change in (*first, *SAME):
        found = change(case) if failing(case) else None
        if found and _excess(found[1]) < _excess(case):
            texts.append(found[0])
            case = found[1]
    return texts, case


def faster(case: Case) -> list[str]:
    """Changes of the same training that save at least a twentieth of an episode and still fit."""
    before = seconds(case)
    told = []
    for text, changed in _changed(case, SPEED):
        after = seconds(changed)
        if after < 0.95 * before and not failing(changed):
            told.append(f"{text}: {after:,.0f} s an episode instead of {before:,.0f}")
    return told


def split(case: Case) -> tuple[Case, list[Seconds]] | None:
    """The number of servers with which an episode, overlapped with the next, is shortest; those that fit come first."""
    stage, packing = case.stages[-1], case.config.model.forward
    tried = [replace(case, servers=count) for count in range(case.parallel, case.gpus, case.parallel)]
    if not tried:
        return None
    best = min(tried, key=lambda item: (bool(failing(item)), overlapped(episode(item, stage, packing))))
    return best, episode(best, stage, packing)


def with_servers(case: Case) -> Case:
    """The case or, where its config wants servers and has no number of them, the best ``split``."""
    if case.servers or case.config.rollout.engine != "server":
        return case
    found = split(case)
    assert found, "make_case refuses servers without GPUs for them"
    return found[0]


def seconds(case: Case) -> float:
    """Seconds of an episode of the last stage."""
    return total(episode(case, case.stages[-1], case.config.model.forward))


def _told(texts: list[str], case: Case) -> str:
    heaviest = max(moments(case), key=lambda moment: moment.bytes)
    return f"{' '.join(texts)}: {heaviest.bytes / GIB:.0f} GiB ({heaviest.name})"


def _excess(case: Case) -> float:
    """Bytes that are missing, over all moments; no end of them where the layout is refused."""
    if case.refused:
        return math.inf
    missing = sum(max(0.0, moment.bytes - case.gpu.memory) for moment in moments(case))
    if case.vllm:
        missing += max(0.0, longest(case) - kv_tokens(case)) * case.shape.kv_token(case.engine_bytes)
    return missing


def _changed(case: Case, changes: tuple[Change, ...]) -> Iterator[tuple[str, Case]]:
    return (found for change in changes if (found := change(case)))


def _shard(case: Case) -> tuple[str, Case] | None:
    if case.sharding == "full" or case.trainers == 1:
        return None
    return "model.sharding=full", replace(case, sharding="full")


def _engine_dtype(case: Case) -> tuple[str, Case] | None:
    if case.engine_bytes == 2 or not case.vllm:
        return None
    return "rollout.dtype=bfloat16", case.with_settings(rollout={"dtype": "bfloat16"})


def _checkpoint(case: Case) -> tuple[str, Case] | None:
    if case.config.model.gradient_checkpointing:
        return None
    return "model.gradient_checkpointing=true", case.with_settings(model={"gradient_checkpointing": True})


def _smaller_passes(case: Case) -> tuple[str, Case] | None:
    """The largest micro-batch that fits, halving it, or the smallest that there can be."""
    tokens = max(stage.optim.micro_batch_tokens for stage in case.stages)
    changed = None
    while tokens // 2 >= max(LEAST_TOKENS, longest(case)):
        tokens //= 2
        changed = case.with_settings(optim={"micro_batch_tokens": tokens})
        if not failing(changed):
            break
    return (f"optim.micro_batch_tokens={tokens}", changed) if changed else None


def _share(case: Case) -> tuple[str, Case] | None:
    """A share of the GPU for vLLM that leaves the trainer's weights and states where they are."""
    if case.servers or not case.vllm:
        return None
    held = sum(part.bytes for part in moments(case)[0].parts if not part.name.startswith("vLLM"))
    share = int((0.95 - held / case.gpu.memory) * 20) / 20
    if not 0 < share < 1 or share == utilization(case):
        return None
    changed = case.with_settings(rollout={"gpu_memory_utilization": share})
    return f"rollout.gpu_memory_utilization={share:g}", changed


def _own_engines(case: Case) -> tuple[str, Case] | None:
    """An engine on each GPU, in place of one over several beside trainers, where its KV cache has room."""
    changed = case.with_settings(rollout={"tensor_parallel_size": 1})
    if not case.refused or kv_tokens(changed) < longest(changed):
        return None
    return "rollout.tensor_parallel_size=1", changed


def _servers(case: Case) -> tuple[str, Case] | None:
    """Servers, of the size with which an episode is shortest, where an engine beside trainers is refused or has no
    room."""
    if case.servers or not case.vllm or not (case.refused or kv_tokens(case) < longest(case)):
        return None
    served = case.with_settings(rollout={"engine": "server"})
    tried = [found for size in (served, *_larger(served, case.gpus - 1)) if (found := split(size))]
    roomy = [found for found in tried if kv_tokens(found[0]) >= longest(case)]
    if not roomy:
        return None
    best, _ = min(roomy, key=lambda found: (bool(failing(found[0])), overlapped(found[1])))
    size = f" rollout.tensor_parallel_size={best.parallel}" if best.parallel != case.parallel else ""
    return f"rollout.engine=server{size} --servers {best.servers}", best


def _parallel(case: Case) -> tuple[str, Case] | None:
    """The smallest number of GPUs a server that gives its KV cache room."""
    for changed in _larger(case, case.servers):
        if kv_tokens(changed) >= longest(changed):
            return f"rollout.tensor_parallel_size={changed.parallel}", changed
    return None


def _larger(case: Case, most: int) -> Iterator[Case]:
    """With engines on twice as many GPUs, and so on: at most ``most``, and those of a machine."""
    parallel = 2 * case.parallel
    while case.vllm and parallel <= min(case.per_node, most) and case.shape.kv_heads % parallel == 0:
        yield case.with_settings(rollout={"tensor_parallel_size": parallel})
        parallel *= 2


def _freeze(case: Case) -> tuple[str, Case] | None:
    if not case.trains_tower:
        return None
    return "model.freeze_vision=true", case.with_settings(model={"freeze_vision": True})


def _adapters(case: Case) -> tuple[str, Case] | None:
    if case.lora:
        return None
    settings = {"lora_rank": 64, "dtype": "bfloat16"}
    return "model.lora_rank=64 model.dtype=bfloat16", case.with_settings(model=settings)


def _more_gpus(case: Case) -> Iterator[tuple[str, Case]]:
    gpus = case.gpus
    while (gpus := gpus * 2) <= MOST_GPUS:
        changed = replace(case, gpus=gpus, per_node=_per_node(case, gpus), sharding="full")
        served = _servers(changed)  # for which there were too few
        text, changed = (f"{served[0]} ", served[1]) if served else ("", changed)
        if not failing(changed):
            yield f"{text}--gpus {gpus}", changed


def _twice(case: Case) -> tuple[str, Case] | None:
    gpus, servers = 2 * case.gpus, 2 * case.servers
    text = f"--gpus {gpus}" + (f" --servers {servers}" if servers else "")
    return text, replace(case, gpus=gpus, servers=servers, per_node=_per_node(case, gpus))


def _per_node(case: Case, gpus: int) -> int:
    return max(case.per_node, min(gpus, PER_NODE))


def _pack(case: Case) -> tuple[str, Case] | None:
    if case.config.model.forward == "shared":
        return None
    return "model.forward=shared", case.with_settings(model={"forward": "shared"})


def _bfloat16(case: Case) -> tuple[str, Case] | None:
    if case.computed == 2:
        return None
    return "model.autocast=true", case.with_settings(model={"autocast": True})


def _keep_activations(case: Case) -> tuple[str, Case] | None:
    if not case.config.model.gradient_checkpointing:
        return None
    return "model.gradient_checkpointing=false", case.with_settings(model={"gradient_checkpointing": False})


def _machines(case: Case) -> tuple[str, Case] | None:
    if case.sharding != "full" or case.trainers <= case.per_node:
        return None
    return "model.sharding=hybrid", replace(case, sharding="hybrid")


SAME: tuple[Change, ...] = (
    *(_own_engines, _shard, _engine_dtype, _checkpoint),
    *(_smaller_passes, _share, _servers, _parallel),
)
LESS: tuple[Change, ...] = (_freeze, _adapters)
SPEED: tuple[Change, ...] = (_pack, _bfloat16, _engine_dtype, _keep_activations, _machines, _twice)
