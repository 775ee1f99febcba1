"""``rethinker plan``: every formula by a case computed by hand, and whole steps against published ones."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_families import BUILDERS
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

from rethinker.cli import main
from rethinker.config import ConfigError, RunConfig, load_config
from rethinker.config.settings import GrpoConfig, ModelConfig, OptimConfig, RolloutConfig
from rethinker.lab.plan import timing
from rethinker.lab.plan.advice import failing, faster, repairs, split
from rethinker.lab.plan.case import Case, make_case
from rethinker.lab.plan.hardware import GPUS, Gpu
from rethinker.lab.plan.memory import (
    FRAGMENTATION,
    WORKSPACE,
    generating,
    kv_tokens,
    layer_bytes,
    moments,
    offloaded,
    passes,
    resident,
    server,
    training,
)
from rethinker.lab.plan.page import make_page
from rethinker.lab.plan.tokens import episode_tokens, micro_batches
from rethinker.lab.sizes.shapes import KNOWN, Shape, find_shape, read_shape
from rethinker.policy.families import FAMILIES
from tests.fsdp_memory import model_config

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "experiments" / "vl_rethinker_7b.yaml"
FULL = ("model.lora_rank=0", "model.dtype=float32", "model.autocast=true", "rollout.dtype=bfloat16")
LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128256, False, None, biases=False)
QWEN3_32B = Shape(5120, 25600, 64, 64, 8, 151936, False, None, biases=False, qk_norm=True)


def case(*settings: str, gpu: str = "h100-80", gpus: int = 8, **options) -> Case:
    """The paper's config with these settings; by default all weights, sharded."""
    options = {"sharding": "full", "prompt_tokens": 900, **options}
    return make_case(load_config(PAPER, typed=[*FULL, *settings]), gpu, gpus, **options)[0]


def lora(*settings: str, gpu: str = "h100-80", gpus: int = 8, **options) -> Case:
    return make_case(load_config(PAPER, typed=settings), gpu, gpus, **{"prompt_tokens": 900, **options})[0]


def sizes(parts) -> dict[str, float]:
    return {part.name: part.bytes for part in parts}


# Shapes


@pytest.mark.parametrize(
    ("name", "total_size"),
    [
        ("Qwen2.5-VL-3B-Instruct", 7_509_245_952),
        ("Qwen2.5-VL-7B-Instruct", 16_584_333_312),
        ("Qwen2.5-VL-32B-Instruct", 66_905_436_672),
        ("Qwen2.5-VL-72B-Instruct", 146_821_554_688),
        ("Qwen3-VL-8B-Instruct", 17_534_247_392),
    ],
)
def test_the_known_sizes_are_those_of_the_published_checkpoints(name, total_size):
    """``total_size`` of model.safetensors.index.json on the hub: bytes in bfloat16."""
    assert 2 * KNOWN[name].total == total_size


def test_counts_equal_those_of_transformers_modules():
    shape = KNOWN["Qwen2.5-VL-7B-Instruct"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(model_config(shape))
    language, tower = model.model.language_model, model.model.visual
    assert sum(p.numel() for p in tower.parameters()) == shape.vision
    assert sum(p.numel() for p in language.layers[0].parameters()) == shape.layer
    assert sum(p.numel() for p in model.parameters()) == shape.total


def test_counts_equal_those_of_transformers_modules_of_qwen3_vl():
    shape = KNOWN["Qwen3-VL-2B-Instruct"]
    text = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "out_hidden_size": 2048,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert sum(p.numel() for p in model.model.visual.parameters()) == shape.vision
    assert sum(p.numel() for p in model.parameters()) == shape.total
    assert read_shape(json.loads(config.to_json_string(use_diff=False)), "here") == shape


def test_a_folder_gives_its_own_sizes():
    shape, source = find_shape(str(ROOT / "data" / "tiny-vlm"))
    with safe_open(ROOT / "data" / "tiny-vlm" / "model.safetensors", framework="numpy") as weights:
        stored = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert shape.total == stored
    assert source.endswith("tiny-vlm/config.json")


def test_older_config_files_have_the_language_models_sizes_at_the_top(tmp_path):
    """As Qwen2.5-VL's files on the hub."""
    config = model_config(KNOWN["Qwen2.5-VL-7B-Instruct"]).to_dict()
    flat = {**config.pop("text_config"), **config, "model_type": "qwen2_5_vl"}
    (tmp_path / "config.json").write_text(json.dumps(flat, default=str))
    assert find_shape(str(tmp_path))[0] == KNOWN["Qwen2.5-VL-7B-Instruct"]


def test_a_model_that_cannot_be_planned_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path=someone/other: .*Qwen2\.5-VL-7B-Instruct.*config\.json"):
        find_shape("someone/other")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="model_type='llama' cannot be planned"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "internvl", "text_config": {"model_type": "none"}}')
    with pytest.raises(ConfigError, match=r"config\.json: transformers makes no model of it"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl", "vision_config": {}}')
    with pytest.raises(ConfigError, match="has no 'depth'"):
        find_shape(str(tmp_path))


@pytest.mark.parametrize("family", BUILDERS)
def test_other_families_are_counted_in_their_own_modules(family, tmp_path):
    model = BUILDERS[family]()[0]
    model.config.save_pretrained(tmp_path)
    shape, _ = find_shape(str(tmp_path))
    assert shape.total == sum(p.numel() for p in model.parameters())
    language = FAMILIES[family].language_model(model)
    assert shape.layer == sum(p.numel() for p in language.layers[0].parameters())
    assert shape.tower.depth == len(FAMILIES[family].tower_blocks(model)) and shape.tower.merge == 2
    options = {"sharding": "full", "response_tokens": 50}
    config = load_config(PAPER, typed=[*FULL, f"model.path={tmp_path}"])
    if shape.tower.tokens == 0:
        with pytest.raises(ConfigError, match=r"cut into tiles.*--prompt-tokens"):
            make_case(config, "h100-80", 8, **options)
        options["prompt_tokens"] = 500
    found, _ = make_case(config, "h100-80", 8, **options)
    assert found.prompt_tokens == {"gemma3": 130 + 4}.get(family, found.prompt_tokens) > 130
    assert not failing(found)


def test_adapters_are_counted_a_layer_and_target():
    """7B: inputs + outputs of the seven layers are 7,168 + 2 x 4,096 + 7,168 + 3 x 22,528 = 90,112."""
    assert lora().adapters == 28 * 64 * 90_112
    assert lora('model.lora_targets=["q_proj"]', "model.lora_rank=8").adapters == 28 * 8 * 7_168


# Memory


def test_what_stays_on_a_gpu_where_everything_is_sharded():
    """8,292,166,656 weights in float32, with two moments each, over eight GPUs."""
    assert sizes(resident(case())) == {"weights": 4_146_083_328, "AdamW": 8_292_166_656}


def test_a_frozen_tower_is_whole_on_every_gpu():
    parts = sizes(resident(case("model.freeze_vision=true")))
    assert parts == {"weights": 4 * 7_615_616_512 / 8, "vision tower": 4 * 676_550_144, "AdamW": 7_615_616_512}


def test_without_sharding_every_gpu_has_everything():
    parts = sizes(resident(case(sharding="none")))
    assert parts == {"weights": 4 * 8_292_166_656, "AdamW": 8 * 8_292_166_656}


def test_hybrid_shards_over_one_machine():
    assert case(gpus=64, sharding="hybrid").shards == 8
    assert case(gpus=64).shards == 64
    assert case(gpus=64, sharding="none").shards == 1
    assert sizes(resident(case(gpus=64, sharding="hybrid"))) == sizes(resident(case(gpus=8)))


def test_adapters_rest_on_a_bfloat16_base():
    parts = sizes(resident(lora()))
    assert parts == {"weights": 2 * 8_292_166_656, "adapters": 4 * 161_480_704, "AdamW": 8 * 161_480_704}


def test_a_reference_model_is_counted_where_a_stage_has_a_kl_term():
    assert "reference model" not in sizes(resident(case()))
    with_kl = case("stages.1.overrides.grpo.kl_coef=0.1")
    assert sizes(resident(with_kl))["reference model"] == 4_146_083_328
    with_adapters = lora("stages.1.overrides.grpo.kl_coef=0.1")  # the reference is the policy without them
    assert "reference model" not in sizes(resident(with_adapters))


def test_a_layer_keeps_226_kilobytes_a_token():
    """7B in bfloat16: two norms of 8 h, four tensors of attention, four of the MLP."""
    assert layer_bytes(case()) == 2 * 8 * 3584 + 2 * (2 * 3584 + 2 * 512) + 2 * 4 * 18944 == 225_280


def test_adapters_keep_a_float32_copy_of_every_input():
    assert layer_bytes(lora()) - layer_bytes(case()) == 4 * (6 * 3584 + 18944)


def test_autocast_without_sharding_keeps_float32_between_layers():
    assert layer_bytes(case(sharding="none")) - layer_bytes(case()) == 18 * 3584


def test_checkpoints_hold_the_input_of_every_layer():
    kept = sizes(passes(case(), 16384, again=False)[1].parts)["kept activations"]
    assert kept == 2 * 3584 * 28 * 16384
    everything = passes(case("model.gradient_checkpointing=false"), 16384, again=False)[1]
    assert everything.of("kept activations") == 225_280 * 28 * 16384


def test_gathered_weights_and_whole_gradients_by_hand():
    """Last layer of 7B: two layers gathered; the gradients of a layer and of the head in bfloat16, and the latter in
    float32 on its way."""
    layer, head = 233_057_792, 152_064 * 3584
    last = passes(case(), 16384, again=False)[1]
    assert last.name == "last layer"
    assert last.of("gathered weights") == 2 * 2 * layer
    assert last.of("whole gradients") == 2 * (layer + head) + 4 * head
    assert last.of("activations of a layer") == 225_280 * 16384


def test_gradients_of_earlier_micro_batches_are_there_from_the_start():
    whole = 4 * 8_292_166_656 / 8
    first, again = passes(case(), 16384, again=False)[1], passes(case(), 16384, again=True)[1]
    assert (first.of("gradients"), again.of("gradients")) == (0, whole)


def test_ddp_has_a_copy_of_the_gradients():
    parts = sizes(training(case(sharding="none")).parts)
    assert parts["gradients"] == parts["DDP's buckets"] == 4 * 8_292_166_656
    assert "DDP's buckets" not in sizes(training(case(sharding="none", gpus=1)).parts)


def test_fragmentation_is_a_tenth_of_what_training_allocates():
    parts = sizes(training(case()).parts)
    rest = sum(size for name, size in parts.items() if name != "fragmentation")
    assert parts["fragmentation"] == pytest.approx(FRAGMENTATION * rest)


def test_the_kv_cache_takes_what_vllm_has_left():
    """0.4 of 80 GB, less 4 GB and 16.6 GB of weights, at 56 KiB a token."""
    assert kv_tokens(lora()) == pytest.approx((0.4 * 80e9 - WORKSPACE - 16_584_333_312) / 57_344)
    assert sum(sizes(generating(lora()).parts[3:]).values()) == pytest.approx(0.4 * 80e9)


def test_an_engine_on_several_gpus_splits_weights_and_cache():
    two = lora("rollout.tensor_parallel_size=2")
    assert kv_tokens(two) == pytest.approx((2 * (0.4 * 80e9 - WORKSPACE) - 16_584_333_312) / 57_344)
    assert sizes(generating(two).parts)["vLLM: weights"] == 16_584_333_312 / 2


def test_a_server_has_its_gpu_to_itself():
    with_servers = case(servers=2)
    assert [moment.name for moment in moments(with_servers)] == [training(with_servers).name, "serve"]
    assert server(with_servers).bytes == pytest.approx(0.9 * 80e9)
    assert with_servers.shards == 6


def test_while_weights_go_to_the_engine_its_cache_is_not_there_yet():
    """The largest tensor is there whole, as stored (float32) and as sent (bfloat16)."""
    whole = case()
    moment = moments(whole)[2]
    assert moment.name == "synchronise"
    held = sum(sizes(resident(whole)).values())
    assert moment.bytes == pytest.approx(held + 2 * 8_292_166_656 + (4 + 2) * 152_064 * 3584)


def test_the_transformers_engine_has_a_cache_and_no_weights_of_its_own():
    """64 sequences of 900 + 2,048 tokens, at 56 KiB a token."""
    own = lora("rollout.engine=transformers")
    assert [moment.name for moment in moments(own)] == ["generate", training(own).name]
    assert generating(own).of("KV cache") == 64 * 2948 * 57_344


def test_a_trained_tower_keeps_its_blocks_inputs():
    """A micro-batch of 16,384 tokens has 16,384 / 4,900 images of 3,080 patches; a block keeps 4 x 1280 x 4 + 8 x (1280
    + 3420) bytes a patch, and each of 32 its input in bfloat16."""
    kept = passes(case(), 16384, again=False)[1].of("activations of the tower")
    patches = 16384 / (900 + 8 * 500) * 770 * 4
    assert kept == pytest.approx(patches * (32 * 2 * 1280 + 4 * 1280 * 4 + 8 * (1280 + 3420)))


def test_features_of_a_frozen_tower_are_kept_up_to_a_bound():
    """1,024 images of 770 tokens, 3,584 numbers each: 2 bytes over 8 GPUs, or 1 GiB."""
    assert passes(lora(), 16384, again=False)[1].of("image features") == 2 * 3584 * 770 * 1024 / 8
    assert passes(lora(gpus=2), 16384, again=False)[1].of("image features") == 2**30


def test_memory_agrees_with_what_others_report():
    """ms-swift#3426: LoRA of 7B on two A800 (80 GB) with vLLM at 0.6 takes about 70 GB. EasyR1#49: all weights of 72B
    take about 64 GPUs of 80 GB, 32 ran out of memory: here they leave less than a twentieth."""
    two = lora("rollout.gpu_memory_utilization=0.6", gpu="a100-80", gpus=2)
    assert max(moment.bytes for moment in moments(two)) == pytest.approx(70e9, rel=0.15)
    large = ("model.path=Qwen/Qwen2.5-VL-72B-Instruct", "rollout.tensor_parallel_size=4")
    assert training(case(*large, gpus=32)).bytes > 0.95 * 80e9
    assert training(case(*large, gpus=64)).bytes < 0.85 * 80e9


# Tokens and seconds


def test_tokens_of_the_papers_episode():
    """1,024 queries x 8; in the second stage half of the samples are forced, and half of those kept."""
    paper = case()
    first, second = (episode_tokens(paper, stage, "shared") for stage in paper.stages)
    assert (first.responses, first.second_looks, second.second_looks) == (8192 * 500, 0, 4096 * 500)
    assert first.packed == 1024 * 900 + 8192 * 500
    assert second.packed == first.packed + 2048 * 500
    assert first.context == 1400
    plain = episode_tokens(paper, paper.stages[0], "plain")
    assert plain.packed == 8192 * 1400
    assert plain.scored == first.scored == 8192 * 500


def test_kept_second_looks_are_bounded_a_query():
    few = case("stages.1.overrides.rethink.max_per_query=1")
    tokens = [episode_tokens(few, stage, "shared").packed for stage in few.stages]
    assert tokens[1] - tokens[0] == 1024 * 500


def test_micro_batches_of_a_step():
    """5,017,600 tokens in 16 steps over 8 GPUs are 39,200 a step: three micro-batches of 16,384."""
    paper = case()
    assert micro_batches(paper, paper.stages[0], episode_tokens(paper, paper.stages[0], "shared")) == (16, 3)


TOY = Gpu("toy", 1e12, 1e12, 1e11, 1e12, 1e9, "invented")
SMALL = Shape(2, 4, 3, 1, 1, 10, False, None, head=2, biases=False)


def toy(**options) -> Case:
    """A model of 3 layers with 40 weights in matrices each, and a head of 20; 10 queries x 2, 4 + 6 tokens."""
    config = RunConfig(
        queries_per_episode=10,
        model=ModelConfig(autocast=True),
        rollout=RolloutConfig(group_size=2, max_new_tokens=6),
        grpo=GrpoConfig(),
        optim=OptimConfig(train_batch_size=10),
    )
    defaults = {"gpus": 1, "per_node": 1, "prompt_tokens": 4, "response_tokens": 6}
    return Case(config, SMALL, TOY, **{**defaults, **options})


def test_flops_of_a_forward_pass_by_hand():
    """Matrices: 3 x (4 x 2 x 2 + 3 x 2 x 4) = 120. Attention: 4 x 3 layers x 2 x tokens x context / 2."""
    assert timing.forward_flops(toy(), 100, 50, 10) == 2 * 120 * 100 + 2 * 20 * 50 + 4 * 3 * 2 * 100 * 5


def test_training_takes_three_forward_passes_and_one_more_where_layers_are_checkpointed():
    small = toy()
    tokens = episode_tokens(small, small.stages[0], "shared")
    assert (tokens.packed, tokens.scored, tokens.context) == (10 * 4 + 20 * 6, 120, 10)
    forward = timing.forward_flops(small, 160, 120, 10)
    seconds = timing.train(small, small.stages[0], tokens).seconds
    assert seconds == pytest.approx(3 * forward / (1e12 * timing.MFU))
    again = small.with_settings(model={"gradient_checkpointing": True})
    assert timing.train(again, again.stages[0], tokens).seconds == pytest.approx(4 / 3 * seconds)
    adapters = small.with_settings(model={"lora_rank": 1})
    assert timing.train(adapters, adapters.stages[0], tokens).seconds == pytest.approx(2 / 3 * seconds)
    exact = small.with_settings(model={"autocast": False})
    assert timing.train(exact, exact.stages[0], tokens).seconds == pytest.approx(10 * seconds)


def test_behaviour_log_probs_are_one_forward_pass_or_none():
    small = toy()
    stage, tokens = small.stages[0], episode_tokens(small, small.stages[0], "shared")
    third = timing.train(small, stage, tokens).seconds / 3
    assert timing.score(small, stage, tokens).seconds == pytest.approx(third)
    once = small.with_settings(optim={"train_batch_size": 20})
    assert timing.score(once, once.stages[0], tokens).seconds == 0


def test_the_vision_tower_is_passed_once_or_as_often_as_the_language_model():
    frozen, trained = case("model.freeze_vision=true"), case()
    tokens = episode_tokens(frozen, frozen.stages[0], "shared")
    image = 2 * 676_550_144 * (900 - 130) * 4
    more = (
        timing.train(trained, trained.stages[0], tokens).seconds
        - timing.train(frozen, frozen.stages[0], tokens).seconds
    )
    assert more == pytest.approx(3 * 1024 * image / timing.trainer_flops(frozen), rel=1e-6)


def test_exchanges_by_hand():
    """Sharded: two gathers of bfloat16 weights and a reduction of float32 gradients a micro-batch; hybrid: a reduction
    between machines beside it; DDP: one all-reduce a step."""
    assert timing.exchange(case(gpus=1), 3, backward=True) == 0
    language, trained, link, net = 7_615_616_512, 8_292_166_656, 0.7 * 450e9, 0.7 * 50e9
    full = timing.exchange(case(), 3, backward=True)
    assert full == pytest.approx(3 * (4 * language + 4 * trained) * 7 / 8 / link)
    assert timing.exchange(case(), 3, backward=False) == pytest.approx(3 * 2 * language * 7 / 8 / link)
    far = timing.exchange(case(gpus=64), 1, backward=True)
    assert far == pytest.approx((4 * language + 4 * trained) * 63 / 64 / net)
    hybrid = timing.exchange(case(gpus=64, sharding="hybrid"), 1, backward=True)
    assert hybrid == pytest.approx(full / 3 + 2 * 4 * trained / 8 / net)
    ddp = timing.exchange(case(sharding="none"), 3, backward=True)
    assert ddp == pytest.approx(2 * 4 * trained / link)


def test_a_step_that_waits_for_weights_says_so():
    far = case(gpus=64)
    part = timing.train(far, far.stages[0], episode_tokens(far, far.stages[0], "shared"))
    assert part.bound == "exchanging weights and gradients"
    near = case(gpus=64, sharding="hybrid")
    assert timing.train(near, near.stages[0], episode_tokens(near, near.stages[0], "shared")).bound == "arithmetic"


def test_a_decoding_step_by_hand():
    """Reading: 2 bytes of 3 x 44 + 20 weights, and 5 sequences of 100 tokens, 24 bytes each."""
    small = toy().with_settings(rollout={"dtype": "bfloat16"})
    assert SMALL.layer == 44
    seconds, bound = timing.decoding_step(small, 5, 100)
    assert seconds - timing.STEP == pytest.approx((2 * (3 * 44 + 20) + 5 * 100 * 24) / 0.6e12)
    assert bound == "reading memory"
    many = timing.decoding_step(small, 1e6, 0.0)
    assert many[0] == pytest.approx(2 * 152 * 1e6 / 0.5e12 + timing.STEP)
    assert many[1] == "arithmetic"


def test_a_group_shares_the_cache_of_its_prompt():
    """900 / 8 + 500 tokens a sequence, 1,024 sequences at most."""
    assert timing.sequences(lora(), 1400) == pytest.approx(kv_tokens(lora()) / (900 / 8 + 500))
    assert timing.sequences(lora("rollout.gpu_memory_utilization=0.95"), 1400) <= 1024


def test_the_longest_response_bounds_generation():
    many = case(gpus=64)
    part = timing.episode(many, many.stages[0], "shared")[0]
    assert part.bound == "the longest response"
    step = timing.decoding_step(many, timing.TAIL_SEQUENCES, 900 + 1024)[0]
    assert part.seconds > timing.OVERHEAD * 2048 * step


def test_prompts_are_read_once_by_all_engines_together():
    """The difference that prompts make: their forward pass, images included, at half of the peak."""
    paper = case("rollout.gpu_memory_utilization=0.6")
    written, prompts = 8192 * 500, 1024 * 900
    more = (
        timing.generate(paper, "", written, prompts, 1400).seconds
        - timing.generate(paper, "", written, 0, 1400).seconds
    )
    images = 2 * 676_550_144 * 770 * 4 * 1024
    flops = timing.forward_flops(paper, prompts, 0, 900) + images
    assert more == pytest.approx(flops / (8 * 989.4e12 * 0.5))


def test_without_room_for_the_cache_nothing_is_generated():
    none = case("rollout.gpu_memory_utilization=0.2")
    assert timing.episode(none, none.stages[0], "shared")[0].seconds == math.inf


def test_weights_reach_the_engine():
    assert timing.synchronise(lora()).seconds == pytest.approx(16_584_333_312 / 50e9)
    assert timing.synchronise(lora(servers=2)).seconds == pytest.approx(16_584_333_312 / 28e9)


def test_overlap_hides_the_shorter_half():
    named = {"generate": 5.0, "second looks": 1.0, "behaviour log-probs": 2.0, "train": 7.0, "sync": 0.5}
    parts = [timing.Seconds(name, seconds, "") for name, seconds in named.items()]
    assert (timing.total(parts), timing.overlapped(parts)) == (15.5, 9.5)


def nemo(shape: Shape, gpus: int, parallel: int, length: int) -> Case:
    """A GRPO step of 2,048 samples on H100, as NeMo-RL v0.4 reports it; 0.15 of a sample is prompt."""
    prompt = round(0.15 * length)
    config = RunConfig(
        queries_per_episode=128,
        model=ModelConfig(autocast=True, forward="plain", gradient_checkpointing=True),
        rollout=RolloutConfig(
            group_size=16,
            max_new_tokens=4096,
            dtype="bfloat16",
            gpu_memory_utilization=0.85,
            tensor_parallel_size=parallel,
        ),
    )
    options = {"sharding": "full", "prompt_tokens": prompt, "response_tokens": length - prompt}
    return Case(config, shape, GPUS["h100-80"], gpus, **options)


@pytest.mark.parametrize(
    ("shape", "gpus", "parallel", "length", "published"),
    [(LLAMA_8B, 16, 1, 1060, 97.7), (QWEN3_32B, 32, 4, 3206, 393)],
    ids=["Llama-3.1-8B", "Qwen3-32B"],
)
def test_published_steps(shape, gpus, parallel, length, published):
    step = nemo(shape, gpus, parallel, length)
    assert timing.total(timing.episode(step, step.stages[0], "plain")) == pytest.approx(published, rel=0.35)


def test_published_training_and_generation():
    """torchtitan, Llama-3.1-8B under FSDP2: 5,762 tokens/s a GPU, 6,667 compiled; vLLM on one H100, 8B at 1,000 tokens
    of context: about 12,500 tokens/s."""
    step = nemo(LLAMA_8B, 8, 1, 1000)
    flops = 3 * timing.forward_flops(step, 8192, 8192, 8192)
    assert 8192 / (flops / (timing.trainer_flops(step) / 8)) == pytest.approx(5762, rel=0.35)
    together = kv_tokens(step) / 1000
    assert together / timing.decoding_step(step, together, 1000)[0] == pytest.approx(12_500, rel=0.35)


# Advice


def test_every_repair_makes_it_fit():
    """All weights without sharding: sharding alone mends it."""
    whole = case(sharding="none")
    assert [moment.name for moment in failing(whole)]
    told = repairs(whole)
    assert any(text.startswith("model.sharding=full:") for text in told)
    assert not failing(replace(whole, sharding="full"))


def test_sharding_and_offload_are_read_from_the_config():
    config = load_config(PAPER, [*FULL, "model.sharding=full", "model.offload=true"])
    found, _ = make_case(config, "h100-80", 8)
    assert (found.sharding, found.offloads) == ("full", True)
    kept = make_case(config, "h100-80", 8, sharding="none")[0]
    assert kept.sharding == "none" and not kept.offloads
    rests = offloaded(found) / found.trained
    assert rests == pytest.approx(16 / 8)  # weights, gradients and two moments in float32, over eight
    assert not sizes(resident(found)) and "gradients" not in sizes(training(found).parts)


def test_repairs_are_combined_where_none_is_enough_and_end_with_more_gpus():
    large = case("model.path=Qwen/Qwen2.5-VL-32B-Instruct", "rollout.tensor_parallel_size=4")
    told = repairs(large)
    assert "--servers 4" in told[0] and "--gpus 16" in told[0]
    assert told[1].startswith("model.lora_rank=64 model.dtype=bfloat16")
    settings = [item for item in told[0].partition(":")[0].split() if "=" in item]
    path = "model.path=Qwen/Qwen2.5-VL-32B-Instruct"
    again = case(path, "rollout.tensor_parallel_size=4", *settings, gpus=16, servers=4)
    assert not failing(again)


def test_an_engine_over_several_gpus_needs_servers():
    """A run of several processes is refused with one: ``placement`` of rollout.vllm_setup."""
    path = "model.path=Qwen/Qwen2.5-VL-72B-Instruct"
    shared = case(path, "rollout.tensor_parallel_size=4", "rollout.gpu_memory_utilization=0.6", gpus=64)
    assert [moment.name for moment in failing(shared)] == ["generate"]  # there would be room
    assert kv_tokens(shared) > 80_000 and "needs servers" in shared.refused
    for start in (shared, case(path, gpus=64)):  # on one GPU the KV cache has no room
        (told,) = repairs(start)
        *settings, _, servers = told.partition(":")[0].split()
        assert settings[0] == "rollout.engine=server"
        size = f"rollout.tensor_parallel_size={start.parallel}"
        served = case(path, size, *settings, gpus=64, servers=int(servers))
        assert served.parallel > 1 and not failing(served)
    assert repairs(case("rollout.tensor_parallel_size=4"))[0].startswith("rollout.tensor_parallel_size=1: ")
    for gpus in (2, 8, 16):
        small = case(path, "rollout.tensor_parallel_size=4", gpus=gpus)
        assert all("server" in told for told in repairs(small))


def test_the_plan_gives_the_reason_why_an_engine_cannot_be_there(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    out = plan(capsys, "rollout.tensor_parallel_size=4", "--gpus", "8")
    assert "Does not fit: generate. rollout.tensor_parallel_size=4 needs servers: " in out


def test_what_fits_needs_no_repair():
    assert failing(case()) == repairs(case()) == []


def test_the_shared_prefix_is_the_first_advice():
    assert faster(case("model.forward=plain"))[0].startswith("model.forward=shared: ")


def test_servers_are_split_off_where_overlap_is_shortest():
    best, parts = split(case())
    stage = best.stages[-1]
    shortest = min(
        timing.overlapped(timing.episode(replace(case(), servers=count), stage, "shared")) for count in range(1, 8)
    )
    assert timing.overlapped(parts) == shortest
    assert split(case(gpus=1, sharding="none")) is None


def test_a_split_that_fits_comes_before_a_faster_one_that_does_not():
    """72B on 48 GPUs: below 40 trainers there is no room, and 2,000 tokens a response want more servers."""
    large = case(
        "model.path=Qwen/Qwen2.5-VL-72B-Instruct", "rollout.tensor_parallel_size=4", gpus=48, response_tokens=2000
    )
    best, parts = split(large)
    more = replace(large, servers=best.servers + 4)
    assert not failing(best)
    assert failing(more)
    assert timing.overlapped(timing.episode(more, more.stages[-1], "shared")) < timing.overlapped(parts)


def test_changed_settings_hold_for_every_stage():
    changed = case("stages.1.overrides.optim.micro_batch_tokens=32768").with_settings(
        optim={"micro_batch_tokens": 8192}
    )
    assert {stage.optim.micro_batch_tokens for stage in changed.stages} == {8192}


# The command


def plan(capsys, *arguments: str) -> str:
    code = main(["plan", str(PAPER), *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_the_command_says_what_fits(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = plan(capsys, "--gpus", "8")
    assert "not run on GPUs" in out
    assert re.search(r"of 74\.5 .*fits .*fits .*fits", out)
    assert "Bottleneck of vl-rethinker: train" in out
    assert "Symbols" not in out


def test_the_command_refuses_nothing(capsys, monkeypatch):
    """A config that cannot be trained as it is, on too few GPUs."""
    monkeypatch.setenv("COLUMNS", "200")
    out = plan(capsys, "model.lora_rank=0", "--gpus", "8", "--gpu", "a100-40")
    assert "cannot be trained: model.dtype='bfloat16' with model.lora_rank=0" in out
    assert "Does not fit: " in out
    assert "model.sharding=full" in out


def test_a_config_of_servers_is_planned_with_servers(capsys, monkeypatch):
    """As with --servers, of a number that it chooses and says; never trainer and engine on the same GPUs."""
    monkeypatch.setenv("COLUMNS", "200")
    lines = plan(capsys, "rollout.engine=server", "--gpus", "8").splitlines()
    (said,) = (line for line in lines if line.startswith("Servers: "))
    number = re.search(r"taken are (\d),", said)
    assert number and "same GPUs" not in "".join(lines) and f"{number[1]} GPUs are servers" in lines[0]
    given = plan(capsys, "rollout.engine=server", "--gpus", "8", "--servers", number[1]).splitlines()
    assert given == [line for line in lines if line != said]
    small = plan(capsys, "rollout.engine=server", "--gpus", "2", "--gpu", "a100-40", *FULL)
    assert "1 GPUs are servers" in small and "Does not fit" in small and "gpu_memory_utilization" not in small


def test_the_gpus_of_a_run_with_servers_are_more_than_its_processes(capsys, monkeypatch):
    """launch.machines x launch.processes are the trainers alone."""
    monkeypatch.setenv("COLUMNS", "200")
    settings = ("rollout.engine=server", "launch.processes=6")
    assert main(["plan", str(PAPER), *settings]) == 2
    error = capsys.readouterr().err
    assert "the 6 GPUs of launch.machines x launch.processes train" in error and "give --servers N" in error
    assert plan(capsys, *settings, "--servers", "2") == plan(capsys, *settings, "--servers", "2", "--gpus", "8")


def test_explain_gives_formulas_with_their_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = plan(capsys, *FULL, "--gpus", "8", "--sharding", "full", "--explain")
    assert "4·(P+V)/8" in out
    assert "P, parameters of the language model: 7,615,616,512" in out
    assert "multiplied by 1.3" in out


def test_sums_are_those_of_the_parts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = plan(capsys, "--gpus", "8").splitlines()
    table = [line for line in lines if line.startswith("│")][: len(sizes(training(lora()).parts)) + 8]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in table]
    end = next(index for index, row in enumerate(cells) if row[0] == "sum")
    for column in (1, 2, 3):
        parts = [float(row[column]) for row in cells[:end] if row[column]]
        assert sum(parts) == pytest.approx(float(cells[end][column]), abs=0.05 * len(parts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "h100"), "--gpu h100: known are h100-80, h200-141"),
        (("--gpus", "6", "--nodes", "4"), "every machine has the same number of GPUs"),
        (("--gpus", "2", "--servers", "2"), "needs at least one GPU that trains"),
        (("rollout.engine=server", "--gpus", "1"), "--gpus 1: with rollout.engine=server a server has 1 to itself"),
        (("model.path=someone/other",), "not one of the known sizes"),
    ],
)
def test_what_cannot_be_computed_is_one_line(capsys, arguments, message):
    assert main(["plan", str(PAPER), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_prompts_are_as_long_as_the_pixel_limits_say():
    """(256 + 1280) / 2 tokens of 28 x 28 pixels; Qwen3-VL's are of 32 x 32."""
    config = load_config(PAPER)
    assert make_case(config, "h100-80")[0].prompt_tokens == 130 + 768
    newer = load_config(PAPER, typed=["model.path=Qwen/Qwen3-VL-8B-Instruct"])
    assert make_case(newer, "h100-80")[0].prompt_tokens == 130 + 768 * 28**2 // 32**2


def test_gpus_are_those_of_all_machines():
    config = load_config(PAPER, typed=["launch.machines=2"])
    assert make_case(config, "h100-80")[0].gpus == 16


def test_the_page_is_what_the_script_writes():
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert page == make_page(ROOT), "run `python scripts/plan_page.py`"
