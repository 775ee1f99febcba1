"""Configurations: what is refused and how it is said, stages, overrides, round trips."""

from __future__ import annotations

import dataclasses
import itertools
import math
import types
import typing
from pathlib import Path

import pytest
import torch

from rethinker.config import RunConfig, check_trainable, data_source, load_config, to_yaml
from rethinker.config import run_config as module
from rethinker.config.schema import ConfigError
from rethinker.grpo import group_advantages, kl_penalty, policy_loss, truncated_importance_weights

ROOT = Path(__file__).parents[1]
SECTIONS = [
    item.name for item in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(getattr(RunConfig(), item.name))
]


def message(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fields_of(hint: object) -> dict[str, object]:
    assert isinstance(hint, type)
    return typing.get_type_hints(hint)


ALL_KEYS = [
    (section, name, hint)
    for section in SECTIONS
    for name, hint in fields_of(type(getattr(RunConfig(), section))).items()
]


def test_defaults_are_the_papers():
    config = load_config()
    assert config == RunConfig()
    assert (config.rollout.group_size, config.queries_per_episode, config.optim.train_batch_size) == (8, 1024, 512)
    assert (config.replay.mode, config.replay.alpha, config.replay.lifetime) == ("ssr", 1.0, 1)
    assert config.rethink.max_per_query == 2 and not config.rethink.skip_reflective


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_names_its_neighbour(section):
    name = dataclasses.fields(getattr(RunConfig(), section))[0].name
    assert message(f"{section}.{name}x=1") == f"unknown setting '{section}.{name}x'; did you mean '{section}.{name}'?"


def test_an_unknown_key_without_neighbour_lists_the_section():
    text = message("launch.zzzzzz=1")
    assert text == (
        "unknown setting 'launch.zzzzzz'; launch has: accelerate, address, deterministic, grace_seconds, "
        "machine_rank, machines, port, processes, threads"
    )
    assert message("qqqq=1").startswith("unknown setting 'qqqq'; the top level has: budget, data, evaluation,")
    assert message("optimm.lr=1") == "unknown setting 'optimm'; did you mean 'optim'?"


@pytest.mark.parametrize(
    ("section", "name", "hint"), ALL_KEYS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_key_refuses_a_value_of_another_kind(section, name, hint):
    wrong = "[[1]]" if hint != tuple[str, ...] else "{a: 1}"
    text = message(f"{section}.{name}={wrong}")
    assert text.startswith(f"{section}.{name}"), text


@pytest.mark.parametrize(
    ("section", "name", "hint"), ALL_KEYS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_only_what_is_optional_may_be_null(section, name, hint):
    if type(None) in typing.get_args(hint) and typing.get_origin(hint) in (types.UnionType, typing.Union):
        assert getattr(getattr(load_config(None, [f"{section}.{name}=null"]), section), name) is None
    else:
        assert f"{section}.{name}=None" in message(f"{section}.{name}=null")


def test_sharded_layers_are_compiled_or_checkpointed():
    text = message("model.sharding=full", "model.compile=true", "model.gradient_checkpointing=true")
    assert "model.sharding='full' with model.compile and model.gradient_checkpointing" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=0", "optim.lr=0.0: must be above 0"),
        ("optim.lr=nan", "optim.lr=nan: must be above 0"),
        ("optim.lr=.inf", "optim.lr=inf: must be above 0"),
        ("optim.lr=fast", "optim.lr='fast': expected float, got str"),
        ("optim.betas=[0.9]", "optim.betas=[0.9]: expected 2 values"),
        ("optim.betas=[0.9,1.0]", "optim.betas=[0.9, 1.0]: each must be below 1"),
        ("optim.betas=[0.9,1.5]", "optim.betas[1]=1.5: must be at least 0 and at most 1"),
        ("rollout.group_size=1", "rollout.group_size=1: must be at least 2"),
        ("rollout.group_size=2.5", "rollout.group_size=2.5: expected int, got float"),
        ("rollout.group_size=true", "rollout.group_size=True: expected int, got bool"),
        ("rollout.top_p=1.1", "rollout.top_p=1.1: must be above 0 and at most 1"),
        ("model.freeze_vision=1", "model.freeze_vision=1: expected bool, got int"),
        ("replay.mode=srr", "replay.mode='srr': allowed are 'grpo', 'filter', 'ssr', 'dynamic_sampling'"),
        ("model.forward=packed", "model.forward='packed': allowed are 'shared', 'plain'"),
        ("optim.micro_batch_tokens=0", "optim.micro_batch_tokens=0: must be at least 1"),
        ("optim.micro_batch_size=8", "unknown setting 'optim.micro_batch_size'"),
        ("replay.mode=srr", "; did you mean 'ssr'?"),
        ("grpo.kl_estimator=[k1]", "grpo.kl_estimator=['k1']: allowed are 'k1', 'k2', 'k3'"),
        ("grpo.dual_clip=1", "grpo.dual_clip=1.0: must be above 1"),
        ("rethink.fraction=1", "rethink.fraction=1.0: Forced Rethinking needs q < 1"),
        ("optim.train_batch_size=100", "does not divide the 8192 samples of an episode"),
        ("evaluation.modes=[]", "evaluation.modes=[]: needs at least one of plain, forced and bound"),
        ("name=../x", "name='../x': allowed are letters, digits"),
        ("name=.x", "name='.x': allowed are letters, digits"),
        ("name=''", "name='': allowed are letters, digits"),
        ("stages=[{name: a/b}]", "stages[0].name='a/b': allowed are letters, digits"),
        ("stages=[{name: a},{name: last}]", "stages[1].name='last': last, best, start, previous* and step-* are taken"),
        ("stages=[{name: step-3}]", "stages[0].name='step-3': last, best, start, previous* and step-* are taken"),
        ("evaluation.modes=[plain,force]", "evaluation.modes[1]='force': allowed are"),
        ("optim=3", "optim=3: expected a section of settings"),
        ("optim", "'optim': an override is written key=value, e.g. optim.lr=5e-5"),
        ("stages=[]", "stages: needs at least one stage"),
        ("stages=[{name: a},{name: a}]", "distinct names, got ['a', 'a']"),
        ("stages=[{episodes: 0}]", "stages[0].episodes=0: must be at least 1"),
        ("stages=[{episode: 2}]", "unknown setting 'stages[0].episode'; did you mean 'stages[0].episodes'?"),
        ("stages=3", "stages=3: expected a list"),
        ("model.offload=true", "model.offload=true with model.sharding='none': only shards are offloaded"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("data.pass_rate=[0.5,1.5]", "data.pass_rate[1]=1.5: must be at least 0 and at most 1"),
        ("data.pass_rate=[0.5]", "data.pass_rate=[0.5]: expected 2 values"),
        ("data.pass_rate=[0.5,0.1]", "data.pass_rate=[0.5, 0.1]: the lower bound comes first"),
    ],
)
def test_bad_values(override, expected):
    text = message(override)
    assert expected in text
    assert "\n" not in text


def test_settings_that_do_not_go_together():
    text = message("rethink.fraction=0.5", "rollout.max_new_tokens=32", "rethink.min_second_look_tokens=32")
    assert text.startswith(
        "rollout.max_new_tokens=32 leaves no first response rethink.min_second_look_tokens=32 for a second look"
    )
    assert load_config(None, ["rollout.max_new_tokens=32"]).rollout.max_new_tokens == 32  # nothing is forced
    kept = message("rethink.fraction=0.5", "rethink.min_kept_tokens=31", "rethink.max_kept_tokens=30")
    assert kept.startswith("rethink.min_kept_tokens=31 with rethink.max_kept_tokens=30 and rollout.max_new_tokens=")
    assert "no second look could be kept" in kept
    assert "no second look" in message(
        "rethink.fraction=0.5", "rethink.min_kept_tokens=64", "rollout.max_new_tokens=64"
    )
    stages = "stages=[{name: a, overrides: {rethink: {fraction: 0.5}}}]"
    assert "stages[0].overrides (stage 'a'): rollout.max_new_tokens=8" in message("rollout.max_new_tokens=8", stages)
    assert "grpo.dual_clip=3.0 with grpo.objective='cispo'" in message("grpo.objective=cispo", "grpo.dual_clip=3")
    assert "model.lora_targets=[] with model.lora_rank" in message("model.lora_rank=8", "model.lora_targets=[]")
    flash = "model.vision_attention=flash_attention_2"
    assert "model.vision_attention='flash_attention_2' with model.dtype='float32'" in message(flash)
    assert load_config(None, [flash, "model.dtype=bfloat16"]).model.vision_attention == "flash_attention_2"
    shared = message("rollout.engine=transformers", "rollout.dtype=bfloat16")
    assert shared.startswith("rollout.dtype='bfloat16' with the transformers engine") and "'float32'" in shared
    assert load_config(None, ["rollout.engine=transformers", "rollout.dtype=float32"]).rollout.dtype == "float32"
    assert message("model.min_pixels=9", "model.max_pixels=8") == "model.min_pixels=9 is above model.max_pixels=8"
    check_trainable(load_config(None, ["model.dtype=bfloat16", "model.lora_rank=8"]))
    with pytest.raises(ConfigError, match=r"model.dtype='bfloat16' with model.lora_rank=0: an update below 2\^-9"):
        check_trainable(load_config(None, ["model.dtype=bfloat16"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b.parquet", ("a/b.parquet", None)),
        ("owner/name", ("owner/name", None)),
        ("owner/name:train", ("owner/name", "train")),
        ("data/world:test", ("data/world", "test")),
        ("C:/data/x.parquet", ("C:/data/x.parquet", None)),
        (":train", (":train", None)),
        ("a:", ("a:", None)),
    ],
)
def test_sources_may_name_a_split(text, expected):
    assert data_source(text) == expected


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path):
    path = tmp_path / "a:b"
    path.write_text("")
    assert data_source(str(path)) == (str(path), None)


def test_numbers_as_yaml_reads_them(tmp_path):
    path = write(tmp_path, "name: 7\noptim:\n  lr: 5e-5\n  weight_decay: 0\n")
    config = load_config(path, ["grpo.importance_cap=null", "rollout.temperature=1"])
    assert (config.name, config.optim.lr, config.optim.weight_decay) == ("7", 5e-5, 0.0)
    assert config.grpo.importance_cap is None and config.rollout.temperature == 1.0


def test_unreadable_files(tmp_path):
    assert "missing.yaml" in message(path=tmp_path / "missing.yaml")
    assert "config.yaml" in message(path=write(tmp_path, "optim: [1, 2"))
    assert message(path=write(tmp_path, "- 1\n")) == f"{tmp_path / 'config.yaml'}: holds no mapping of settings"
    assert message(path=write(tmp_path, "optim:\n")) == "optim=None: expected a section of settings"


TWO_STAGES = """
stages:
  - {name: first, episodes: 2}
  - name: second
    episodes: 3
    overrides: {rethink: {fraction: 0.5}, optim: {lr: 0.5}, evaluation: {every: 1}}
"""


def test_stages(tmp_path):
    config = load_config(write(tmp_path, TWO_STAGES), ["grpo.clip_high=0.3"])
    assert config.episodes == 5
    first, second = config.for_stage(0), config.for_stage(1)
    assert first == config
    assert (second.rethink.fraction, second.optim.lr, second.evaluation.every) == (0.5, 0.5, 1)
    assert second.grpo.clip_high == 0.3 and second.rethink.max_per_query == 2
    assert second.stages == config.stages


def test_an_override_reaches_into_a_stage(tmp_path):
    config = load_config(
        write(tmp_path, TWO_STAGES), ["stages.1.episodes=9", "stages.1.overrides.rethink.fraction=0.25"]
    )
    assert config.episodes == 11
    assert config.for_stage(1).rethink.fraction == 0.25 and config.for_stage(1).optim.lr == 0.5
    assert "stages.7.episodes" in message("stages.7.episodes=1", path=tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("{rethink: {fractoin: 0.5}}", "unknown setting 'rethink.fractoin'; did you mean 'rethink.fraction'?"),
        ("{rethink: {fraction: 2}}", "rethink.fraction=2.0: must be at least 0 and at most 1"),
        ("{rethink: 2}", "rethink=2: expected a section of settings"),
        (
            "{model: {path: x}}",
            "a stage can set budget, evaluation, grpo, optim, replay, rethink, reward, rollout, tracking, not 'model'",
        ),
        ("{rollout: {engine: vllm}}", "'rollout.engine' is for the whole run; a stage can set rollout.group_size"),
        ("{optim: {train_batch_size: 500}}", "optim.train_batch_size=500 does not divide"),
        ("{grpo: {objective: cispo, dual_clip: 3}}", "grpo.dual_clip=3.0 with grpo.objective='cispo'"),
    ],
)
def test_bad_stage_overrides_name_the_stage(tmp_path, overrides, expected):
    text = message(path=write(tmp_path, f"stages: [{{name: a}}, {{name: b, overrides: {overrides}}}]"))
    assert text.startswith("stages[1].overrides (stage 'b'): ") and expected in text


CHOICES = {
    name: typing.get_args(hint)
    for name, hint in fields_of(module.GrpoConfig).items()
    if typing.get_origin(hint) is typing.Literal
} | {"dual_clip": (None, 3.0), "importance_cap": (None, 2.0), "clip_low": (0.2, 1.5)}


def test_every_loss_that_a_config_can_ask_for_can_be_computed():
    """What grpo.py refuses is refused when the config is read, not at the first update."""
    rows = torch.tensor([[-1.0, -2.0], [-0.5, -0.1]])
    ones = torch.ones(2, 2, dtype=torch.bool)
    refused = 0
    for values in itertools.product(*CHOICES.values()):
        options = dict(zip(CHOICES, values, strict=True))
        try:
            grpo = load_config(None, [f"grpo.{name}={'null' if v is None else v}" for name, v in options.items()]).grpo
        except ConfigError:
            refused += 1
            continue
        advantages = group_advantages(torch.tensor([[0.0, 1.0]]), grpo.advantage_scale)[0]
        kl_penalty(rows, rows - 1, grpo.kl_estimator)
        weights = None
        if grpo.importance_cap is not None:
            weights = truncated_importance_weights(rows, rows - 1, ones, grpo.importance_cap)
        loss, _ = policy_loss(
            rows,
            rows - 0.5,
            advantages,
            ones,
            clip_low=grpo.clip_low,
            clip_high=grpo.clip_high,
            aggregation=grpo.aggregation,
            ratio=grpo.ratio,
            objective=grpo.objective,
            dual_clip=grpo.dual_clip,
            importance_weights_BT=weights,
            max_length=2,
        )
        assert torch.isfinite(loss)
    assert refused == math.prod(map(len, CHOICES.values())) // 4  # cispo with a dual clip


@pytest.mark.parametrize(
    ("overrides", "samples", "batches"),
    [
        ((), 8192, 16),
        ((), 9000, 16),  # appended trajectories make the batches larger
        ((), 8191, 16),  # dynamic sampling fell short: fewer, and none of a scrap
        ((), 7681, 16),
        ((), 7680, 15),
        ((), 8, 1),
        ((), 0, 0),
        (("optim.train_batch_size=8192",), 9000, 1),
    ],
)
def test_batches_of_an_episode(overrides, samples, batches):
    assert load_config(None, overrides).batches(samples) == batches


def test_every_stage_key_exists():
    for section, names in module.STAGE_KEYS.items():
        known = {item.name for item in dataclasses.fields(getattr(RunConfig(), section))}
        assert set(names) <= known
    assert {*module.STAGE_KEYS, *module.STAGE_SECTIONS} <= set(SECTIONS)


def test_round_trip(tmp_path):
    config = load_config(
        write(tmp_path, TWO_STAGES),
        [
            'data.prompt_suffix="\\n\\nPut your answer within \\\\boxed{}."',
            "data.prompt_hint='yes: no # {a}'",
            "optim.lr=1e-6",
            "grpo.dual_clip=3",
            "model.max_pixels=1003520",
            "name='0012'",
        ],
    )
    assert config.data.prompt_suffix == "\n\nPut your answer within \\boxed{}."
    again = load_config(write(tmp_path, to_yaml(config)))
    assert again == config
    assert to_yaml(again) == to_yaml(config)


def is_run(path: Path) -> bool:
    """Not a file of `accelerate config`, nor parameters of notebooks, nor a grid of runs, nor the evidence's claims."""
    other = path.parent.name == "accelerate" or path.name in ("params.yaml", "evidence.yaml")
    return not other and "\naxes:" not in path.read_text()


@pytest.mark.parametrize(
    "path", [*filter(is_run, sorted((ROOT / "experiments").rglob("*.yaml")))], ids=lambda path: path.name
)
def test_every_experiment_loads(path):
    config = load_config(path)
    assert [config.for_stage(index) for index in range(len(config.stages))]
    assert load_config(path, ["seed=1"]).seed == 1


def test_the_default_runs_last_stage_prices_tokens_and_forces_nothing():
    config = load_config(ROOT / "experiments" / "tiny.yaml")
    reasoner, rethinker, chooser = (config.for_stage(index) for index in range(3))
    assert [part.reward.token_price for part in (reasoner, rethinker, chooser)] == [0, 0, 0.008]
    assert chooser.rethink == reasoner.rethink == config.rethink and rethinker.rethink.fraction == 0.5
    assert chooser.optim == rethinker.optim and config.rethink.fraction == 0


def test_imitation_alone_needs_something_to_imitate():
    assert message("grpo.policy_coef=0") == (
        "grpo.policy_coef=0 leaves the imitation of kept second looks, which needs rethink.fraction and "
        "rethink.nll_coef above 0, got 0.0 and 0.05: nothing would be trained"
    )
    assert load_config(None, ["grpo.policy_coef=0", "rethink.fraction=0.5"]).grpo.policy_coef == 0


def test_an_override_can_refer_to_the_config():
    config = load_config(None, ["seed=3", "model.path=runs/first-s${seed}/model", r"data.prompt_hint=\${x}"])
    assert config.model.path == "runs/first-s3/model" and config.data.prompt_hint == "${x}"
