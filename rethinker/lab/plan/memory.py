"""Memory of a GPU by part, at the moments of an episode that need most. Formulas; nothing here was run on GPUs.

The sharded training pass was compared with torch's FSDPMemTracker under fake tensors (tests/test_plan_tracker.py): the
moments below are those at which it finds the peak. Symbols are those of ``show.SYMBOLS``.
"""

from __future__ import annotations

from dataclasses import dataclass

from rethinker.lab.plan.case import Case
from rethinker.lab.plan.tokens import accumulates, row_tokens

GIB = 2**30
CHUNK = 2**28  # bytes of the float32 logits that exist at once: policy.forward.CHUNK_ELEMENTS
FEATURES = 2**30  # bytes of image features that are kept at most: policy.vision.FEATURE_BYTES
FRAGMENTATION = 0.1  # of what training allocates by torch's caching allocator (ours)
ASLEEP = GIB  # bytes that a sleeping vLLM keeps: CUDA graphs, workspaces (ours)
WORKSPACE = 4 * 10**9  # bytes a GPU that vLLM takes beside weights and KV cache: activations, CUDA graphs (ours)
SERVER_UTILIZATION = 0.9  # of a server's GPU: vLLM's default


@dataclass(frozen=True)
class Part:
    """A part of a GPU's memory and how it was computed."""

    name: str
    bytes: float
    formula: str


@dataclass(frozen=True)
class Moment:
    """What a GPU holds at one moment."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> float:
        """All of it."""
        return sum(part.bytes for part in self.parts)

    def of(self, *names: str) -> float:
        """Bytes of the parts of these names."""
        return sum(part.bytes for part in self.parts if part.name in names)


def moments(case: Case) -> list[Moment]:
    """The moments of an episode that decide whether the case fits: a colocated GPU's, or a trainer's and a server's."""
    train = training(case)
    if case.servers:
        return [train, server(case)]
    return [generating(case), train, synchronising(case)] if case.vllm else [generating(case), train]


def fits(case: Case, moment: Moment) -> bool:
    """Whether a moment finds room on the GPU, and vLLM room for one sequence of the longest kind, with an engine that
    can be there."""
    room = moment.bytes <= case.gpu.memory
    if moment.name not in ("generate", "serve") or not case.vllm:
        return room
    return room and not case.refused and kv_tokens(case) >= longest(case)


def longest(case: Case) -> int:
    """Tokens of a prompt with the longest response."""
    return case.prompt_tokens + case.config.rollout.max_new_tokens


def resident(case: Case) -> list[Part]:
    """What stays on a training GPU through all of an episode."""
    parts = _state(case)
    return [part for part in parts if part.name == "vision tower"] if case.offloads else parts


def offloaded(case: Case) -> float:
    """Bytes a GPU of what rests in the CPU's memory instead."""
    parts = [*_state(case), *_gradients(case, 1.0)]
    return sum(part.bytes for part in parts if part.name != "vision tower") if case.offloads else 0.0


def _state(case: Case) -> list[Part]:
    """Weights and states of the optimiser, sharded or whole."""
    shape, shards, stored = case.shape, case.shards, case.stored
    over = f"/{shards}" if shards > 1 else ""
    tower_too = case.trains_tower or shards == 1
    weights = shape.total if tower_too else shape.language
    parts = [Part("weights", stored * weights / shards, f"{stored}·{'(P+V)' if tower_too else 'P'}{over}")]
    if not tower_too:
        parts.append(Part("vision tower", stored * shape.vision, f"{stored}·V, frozen: whole on every GPU"))
    if case.lora:
        parts.append(Part("adapters", 4 * case.trained / shards, f"4·A{over}, float32"))
    parts.append(Part("AdamW", 8 * case.trained / shards, f"8·trained{over}: two float32 moments"))
    if any(stage.grpo.kl_coef for stage in case.stages) and not case.lora:
        parts.append(Part("reference model", stored * shape.total / shards, f"{stored}·(P+V){over}"))
    return parts


def training(case: Case) -> Moment:
    """The moment of a training pass that needs most, with fragmentation."""
    peak = max(passes(case, case.micro_tokens, again=accumulates(case)), key=lambda moment: moment.bytes)
    parts = [*resident(case), *peak.parts]
    if case.vllm and not case.servers:
        parts.append(Part("vLLM asleep", ASLEEP, "assumed"))
    wasted = FRAGMENTATION * sum(part.bytes for part in parts)
    parts.append(Part("fragmentation", wasted, f"{FRAGMENTATION:.0%} of the above"))
    return Moment(f"train ({peak.name})", tuple(parts))


def passes(case: Case, tokens: int, *, again: bool) -> list[Moment]:
    """What a forward and backward pass over ``tokens`` adds to ``resident``, at its four heaviest moments.

    ``again``: gradients of an earlier micro-batch are there, as shards: they are reduced after each micro-batch, or
    whole gradients would pile up on every GPU.
    """
    c, layer, head, tied = case.computed, case.shape.layer, case.shape.lm_head, case.shape.tied
    work = Part("activations of a layer", layer_bytes(case) * tokens, "a·T, recomputed")
    if not case.config.model.gradient_checkpointing:
        work = Part("gradients of activations", 3 * c * case.shape.mlp * tokens, f"3·{c}·i·T, of an MLP")
    logits = Part("logits", 4 * CHUNK, "4·2^28: float32 logits of a chunk, log-softmax, their gradients")
    # Name; share of the layers that are done; weights gathered, with a whole gradient, with one that is being reduced;
    # what is worked on. Tied embeddings belong to the root, which stays whole through the pass, with two gradients.
    found = [
        ("output layer", 0.0, head, head, head, logits),
        ("last layer", 0.0, 2 * layer + tied * head, layer + (1 + tied) * head, max(layer, (not tied) * head), work),
        ("first layer", 1.0, layer + head, layer + 2 * tied * head, layer, work),
        ("embeddings", 1.0, 0, head, head, None),
    ]
    moments = []
    for name, done, gathered, whole, reduced, own in found:
        parts = [*_activations(case, tokens, done)]
        if not case.offloads:
            parts = [*_gradients(case, 1.0 if again else done), *parts]
        if case.shards > 1:
            parts.append(Part("gathered weights", c * gathered, f"{c}·(units in use)"))
            if not case.lora:
                parts.append(
                    Part("whole gradients", c * whole + 4 * reduced, f"{c}·(units in use) + 4·(being reduced)")
                )
        elif c < case.stored and (name == "output layer" or not case.config.model.gradient_checkpointing):
            parts.append(Part("weights cast by autocast", c * (case.shape.language - head), f"{c}·(P-embeddings)"))
        moments.append(Moment(name, tuple(part for part in (*parts, own) if part and part.bytes)))
    return moments


def _gradients(case: Case, share: float) -> list[Part]:
    bytes_ = 4 * case.trained / case.shards
    if case.shards > 1:
        return [Part("gradients", share * bytes_, f"4·trained/{case.shards}")]
    parts = [Part("gradients", bytes_, "4·trained")]  # all at the last moments, and DDP keeps its buckets
    if case.trainers > 1:
        parts.append(Part("DDP's buckets", bytes_, "4·trained: what is exchanged"))
    return parts


def layer_bytes(case: Case) -> float:
    """a: bytes a token that one decoder layer keeps for its backward pass.

    Norms (each a float32 copy of the input, the normalised input, the output), queries, keys, values and attention's
    output, and four tensors of the MLP; what autocast and adapters cast is kept too.
    """
    shape, c = case.shape, case.computed
    h, i, q, k = shape.width, shape.mlp, shape.queries, shape.keys
    kept = shape.norms * (4 * h + 2 * c * h) + c * (2 * q + 2 * k) + c * 4 * i + shape.qk_norm * (4 + 2 * c) * (q + k)
    if c < case.stored and case.shards == 1:  # float32 between the layers, cast anew for each matrix
        kept += 18 * h
    if case.lora:
        inputs = (shape.linears[name][0] for name in case.config.model.lora_targets if name in shape.linears)
        kept += 4 * sum(inputs)
    return kept


def _activations(case: Case, tokens: int, done: float) -> list[Part]:
    """What the layers keep, ``done`` of them finished, and what the images left."""
    shape, checkpointed = case.shape, case.config.model.gradient_checkpointing
    stream = case.computed if case.shards > 1 else case.stored  # bytes of a number between layers
    a_token = stream * shape.width if checkpointed else layer_bytes(case)
    formula = f"{stream}·h·L·T" if checkpointed else "a·L·T"
    parts = [Part("kept activations", (1 - done) * a_token * shape.layers * tokens, formula)]
    if shape.tower is None:
        return parts
    queries = tokens / row_tokens(case)
    if case.trains_tower:
        tower, patches = shape.tower, queries * case.patches
        block = 4 * tower.width * (2 + case.computed) + 4 * case.computed * (tower.width + tower.mlp)
        kept = tower.depth * (stream * tower.width if checkpointed else block) + block
        return [*parts, Part("activations of the tower", kept * patches, "(2·w·depth + a block)·patches")]
    features = case.computed * shape.width * case.image_tokens * case.config.queries_per_episode / case.trainers
    return [*parts, Part("image features", min(FEATURES, features), f"{case.computed}·h·image tokens, 1 GiB at most")]


def utilization(case: Case) -> float:
    """Share of a GPU's memory that vLLM takes."""
    return SERVER_UTILIZATION if case.servers else case.config.rollout.gpu_memory_utilization


def kv_tokens(case: Case) -> float:
    """Tokens that the KV cache of an engine has room for; negative where the weights alone have none."""
    each = case.shape.kv_token(case.engine_bytes)
    if not case.vllm:
        return (case.gpu.memory - sum(part.bytes for part in resident(case))) / each
    room = case.parallel * (utilization(case) * case.gpu.memory - WORKSPACE)
    return (room - case.engine_bytes * case.shape.total) / each


def generating(case: Case) -> Moment:
    """A colocated GPU while responses are generated."""
    if case.vllm:
        return Moment("generate", (*resident(case), *_vllm(case)))
    sequences = case.config.rollout.batch_size
    bytes_ = sequences * longest(case) * case.shape.kv_token(case.stored)
    cache = Part("KV cache", bytes_, f"kv·{sequences} sequences·longest, transformers engine")
    return Moment("generate", (*resident(case), cache))


def server(case: Case) -> Moment:
    """A server's GPU."""
    return Moment("serve", tuple(_vllm(case)))


def _vllm(case: Case) -> list[Part]:
    """vLLM's share of a GPU. Where its weights have no room in it they are counted whole, and no KV cache is left."""
    over = f"/{case.parallel}" if case.parallel > 1 else ""
    share = utilization(case) * case.gpu.memory
    weights = case.engine_bytes * case.shape.total / case.parallel
    left = max(0.0, share - weights - WORKSPACE)
    return [
        Part("vLLM: weights", weights, f"{case.engine_bytes}·(P+V){over}"),
        Part("vLLM: workspace", WORKSPACE, "4 GB, assumed"),
        Part("vLLM: KV cache", left, f"{utilization(case):g} of the GPU, less these"),
    ]


def synchronising(case: Case) -> Moment:
    """A colocated GPU while weights go to the engine: its weights are back, its KV cache is not yet."""
    largest = case.shape.lm_head * (case.stored + case.engine_bytes)
    stream = Part("largest tensor", largest, f"({case.stored}+{case.engine_bytes})·embeddings, gathered and cast")
    return Moment("synchronise", (*resident(case), *_vllm(case)[:1], stream))
