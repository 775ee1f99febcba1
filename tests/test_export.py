"""``rethinker export``: what is written, and that verl and verifiers read it (where they are installed)."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rethinker.cli import main
from rethinker.config import load_config
from rethinker.datasets.io import load_queries
from rethinker.lab.export import prime_rl, verl
from rethinker.lab.export.data import pictures, prompt
from rethinker.lab.export.write import left_out
from rethinker.policy.pictures import open_image
from rethinker.types import Query

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "experiments" / "vl_rethinker_7b.yaml"
SUFFIX = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
TEST = ROOT / "data" / "visual_math" / "test.parquet"


def export(to: str, folder: Path, *settings: str) -> Path:
    sources = [f"data.{split}={TEST}" for split in ("train", "validation")]
    words = ["export", str(PAPER), *sources, "data.train_limit=10", *settings, "--to", to, "--out", str(folder)]
    assert main(words) == 0
    return folder


@pytest.fixture(scope="module")
def for_verl(tmp_path_factory) -> Path:
    return export("verl", tmp_path_factory.mktemp("verl") / "out")


@pytest.fixture(scope="module")
def for_prime(tmp_path_factory) -> Path:
    return export("prime-rl", tmp_path_factory.mktemp("prime") / "out")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# -- data -------------------------------------------------------------------------------------------------------------


def test_rows_of_verl(for_verl: Path):
    queries, _ = load_queries(TEST, limit=10)
    rows = pq.read_table(for_verl / "train.parquet").to_pylist()
    assert len(rows) == 10 and pq.read_metadata(for_verl / "validation.parquet").num_rows == 36
    for index, (row, query) in enumerate(zip(rows, queries, strict=True)):
        (turn,) = row["prompt"]
        assert turn == {"role": "user", "content": query.question + SUFFIX} and turn["content"].count("<image>") == 1
        assert row["reward_model"] == {"style": "rule", "ground_truth": query.answer}
        known = {"index": index, "split": "train", "qid": query.qid, "question": query.question}
        assert row["extra_info"] == known and row["data_source"] == query.source
        (image,) = row["images"]
        assert (image["min_pixels"], image["max_pixels"]) == (200704, 1003520)
        assert np.array_equal(pixels(image["bytes"]), np.asarray(open_image(query.images[0])))


def test_images_without_a_place_come_first_as_the_policy_reads_them():
    config = load_config(None, ["data.prompt_suffix=Go.", "data.prompt_hint=Reflect."])
    query = Query("a", "Compare <image> with it.", "1", ("x.png", "y.png"))
    assert prompt(config, query) == "<image>Compare <image> with it.Go.\n\nReflect."
    assert prompt(config, Query("b", "1 + 1?", "2")) == "1 + 1?Go.\n\nReflect."


def test_other_loaders_see_the_pictures_that_the_policy_sees(tmp_path: Path):
    noise = Image.effect_noise((8, 6), 90)
    noise.convert("RGB").save(tmp_path / "plain.png")
    noise.convert("RGB").save(tmp_path / "plain.jpg")
    clear = noise.convert("RGBA")
    clear.putalpha(noise)
    clear.save(tmp_path / "clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.convert("RGB").save(tmp_path / "turned.jpg", exif=turned)
    files = [tmp_path / name for name in ("plain.png", "plain.jpg", "clear.png", "turned.jpg")]
    written = list(pictures(Query("a", "?", "1", tuple(map(str, files)))))
    for file, data in zip(files, written, strict=True):
        assert np.array_equal(pixels(data), np.asarray(open_image(file)))
        assert (data == file.read_bytes()) == file.name.startswith("plain")


def test_a_folder_with_something_in_it_is_left_alone(for_verl: Path, capsys):
    assert main(["export", str(PAPER), f"data.train={TEST}", "--to", "verl", "--out", str(for_verl)]) == 2
    assert "there is something already" in capsys.readouterr().err


def test_the_subset_by_pass_rate_is_exported_and_said(tmp_path: Path, capsys):
    """The sample has no rates, so nothing is left of it."""
    arguments = [f"data.train={TEST}", "data.pass_rate=[0,1]", "--to", "verl", "--out", str(tmp_path / "out")]
    assert main(["export", str(PAPER), *arguments]) == 2
    out, err = capsys.readouterr()
    assert "0 of 36 rows kept, 36 have no rate" in out and "none of its rows can be used" in err


# -- the grader -------------------------------------------------------------------------------------------------------


def load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reward_function_grades_as_we_do(for_verl: Path):
    score = load(for_verl / "reward.py").compute_score
    assert score("x", "so \\boxed{1/2}", "\\frac{1}{2}", {}) == {"score": 1.0, "acc": 1.0}
    assert score(data_source="x", solution_str="1/2", ground_truth="1/2", extra_info=None)["score"] == 0.0
    choices = {"question": "Which one?\nA. a cat\nB. a dog"}
    assert score("x", "\\boxed{a dog}", "B", choices)["score"] == 1.0
    assert score("x", "\\boxed{a dog}", "B", {})["score"] == 0.0


# -- numbers ----------------------------------------------------------------------------------------------------------


def overrides(*settings: str) -> dict[str, str]:
    config = load_config(PAPER, typed=settings)
    queries = [Query("a", "<image>?", "1", ("a.png",))]
    items = verl.overrides(config, {"train": queries, "validation": queries}, "/out")
    return dict(item.split("=", 1) for item in items)


def test_numbers_of_verl():
    values = overrides()
    actor, rollout = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
    assert values["data.train_batch_size"] == "1024" and values[f"{rollout}n"] == "8"
    assert values[f"{actor}ppo_mini_batch_size"] == "64"  # queries: 512 samples of 8 each
    assert values[f"{actor}clip_ratio_low"] == "0.2" and values[f"{actor}clip_ratio_high"] == "0.35"
    assert float(values[f"{actor}clip_ratio_c"]) == 1e9
    assert values[f"{actor}optim.lr"] == "1e-05" and values[f"{actor}optim.betas"] == "[0.9,0.98]"
    assert values[f"{actor}loss_agg_mode"] == "seq-mean-token-mean" and values[f"{actor}use_kl_loss"] == "False"
    assert values["data.max_response_length"] == "2048" and values["data.max_prompt_length"] == str(1024 + 1280)
    assert values["algorithm.norm_adv_by_std_in_grpo"] == "True"
    assert values["algorithm.rollout_correction.rollout_is_threshold"] == "2.0"
    assert values["actor_rollout_ref.model.exclude_modules"] == "'.*visual.*'"
    assert values["trainer.total_training_steps"] == "24" and values["trainer.n_gpus_per_node"] == "8"


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("grpo.advantage_scale=none", "algorithm.norm_adv_by_std_in_grpo", "False"),
        ("grpo.aggregation=constant", "actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-sum-norm"),
        ("grpo.ratio=sequence", "actor_rollout_ref.actor.policy_loss.loss_mode", "gspo"),
        ("grpo.objective=cispo", "actor_rollout_ref.actor.policy_loss.loss_mode", "cispo"),
        ("launch.machines=6", "trainer.nnodes", "6"),
        ("grpo.dual_clip=3", "actor_rollout_ref.actor.clip_ratio_c", "3.0"),
        ("grpo.kl_coef=0.1", "actor_rollout_ref.actor.kl_loss_type", "low_var_kl"),
        ("replay.mode=dynamic_sampling", "algorithm.filter_groups.enable", "True"),
        ("model.path='my model'", "actor_rollout_ref.model.path", "'my model'"),
    ],
)
def test_settings_that_verl_has_too(setting, key, value):
    assert overrides(setting)[key] == value
    assert overrides().get(key) != value


def test_the_script_gives_verl_the_overrides_and_its_own_folder(for_verl: Path, tmp_path: Path):
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    run = subprocess.run(
        ["bash", for_verl / "train.sh", "trainer.nnodes=2"],
        env={"PATH": f"{fake.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    module, name, *items = run.stdout.splitlines()
    assert (module, name) == ("-m", "verl.trainer.main_ppo") and items[-1] == "trainer.nnodes=2"
    assert f"data.train_files={for_verl}/train.parquet" in items
    assert f"reward.custom_reward_function.path={for_verl}/reward.py" in items


def test_numbers_of_prime_rl(for_prime: Path):
    values = tomllib.loads((for_prime / "rl.toml").read_text(encoding="utf-8"))
    assert values["orchestrator"]["batch_size"] == 512 and values["max_steps"] == 24 * 16
    (train,), (held_out,) = (values["orchestrator"][use]["source"] for use in ("train", "eval"))
    assert train["group_size"] == 8 and train["sampling"] == {"temperature": 1.0, "max_completion_tokens": 2048}
    assert train["env"]["taskset"] == {"id": "rethinker-tasks", "split": "train"}
    assert held_out["env"]["taskset"]["split"] == "validation" and held_out["sampling"]["temperature"] == 0.0
    assert values["orchestrator"]["eval"]["interval"] == 16
    assert values["trainer"]["optim"]["lr"] == 1e-5 and values["trainer"]["model"]["lora"]["rank"] == 64
    config = load_config(PAPER, typed=[f"data.validation={TEST}"])
    assert values == prime_rl.settings(config, {"train": [], "validation": []})


# -- what is not carried over -----------------------------------------------------------------------------------------


def test_what_is_left_out_is_named_where_it_is_used(for_verl: Path):
    text = (for_verl / "README.md").read_text(encoding="utf-8")
    assert "train 10, validation 36" in text
    for name in ("Selective Sample Replay", "Forced Rethinking", "vl-rethinker", "canary", "special tokens"):
        assert name in text.partition("Not carried over:")[2]
    servers = list(left_out(load_config(PAPER, ["rollout.engine=server", "rollout.overlap=true"])))
    assert "rollout.engine=server" in "".join(servers) and "rollout.overlap" in "".join(servers)
    used = ["reward.token_price=0.01", "grpo.policy_coef=0.5", "budget.steps=9", "evaluation.every_tokens=9"]
    own = "".join(left_out(load_config(None, used)))
    assert all(name in own for name in ("reward.token_price", "grpo.policy_coef", "budget.*", "every_tokens"))
    plain = load_config(None, ["replay.mode=grpo"])
    assert len(list(left_out(plain))) == 1  # the canary


# -- their own readers ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_verl_reads_data_overrides_and_reward(tmp_path: Path):
    pytest.importorskip("verl")
    import verl as package  # type: ignore[import-not-found]
    from hydra import compose, initialize_config_dir  # type: ignore[import-not-found]
    from transformers import AutoProcessor
    from verl.trainer.ppo.reward import load_reward_manager  # type: ignore[import-not-found]
    from verl.utils.config import omega_conf_to_dataclass  # type: ignore[import-not-found]
    from verl.utils.dataset.rl_dataset import RLHFDataset  # type: ignore[import-not-found]

    model = str(ROOT / "data" / "tiny-vlm")
    folder = export("verl", tmp_path / "out", f"model.path={model}", "model.min_pixels=null", "model.max_pixels=3136")
    splits = {"train": load_queries(TEST, limit=10)[0], "validation": load_queries(TEST)[0]}
    config = load_config(PAPER, typed=[f"model.path={model}", "model.min_pixels=null", "model.max_pixels=3136"])
    with initialize_config_dir(str(Path(package.__file__).parent / "trainer" / "config"), version_base=None):
        theirs = compose("ppo_trainer", overrides=verl.overrides(config, splits, str(folder)))
    assert omega_conf_to_dataclass(theirs.actor_rollout_ref.actor).clip_ratio_high == 0.35
    processor = AutoProcessor.from_pretrained(model)
    data = RLHFDataset(str(folder / "train.parquet"), processor.tokenizer, theirs.data, processor)
    assert len(data) == 10
    first = data[0]
    assert [part["type"] for part in first["raw_prompt"][0]["content"]] == ["image", "text"]
    images, _ = asyncio.run(RLHFDataset.process_vision_info(first["raw_prompt"], 14, theirs.data))
    assert len(images) == 1 and images[0].width * images[0].height <= 3136
    manager = load_reward_manager(theirs, processor.tokenizer)
    extra = {"data_source": first["data_source"], "extra_info": first["extra_info"]}
    for text, score in ((f"\\boxed{{{first['reward_model']['ground_truth']}}}", 1.0), ("nothing", 0.0)):
        result = manager.compute_score(solution_str=text, ground_truth=first["reward_model"]["ground_truth"], **extra)
        assert result["score"] == score


@pytest.mark.long
def test_verifiers_reads_the_taskset(for_prime: Path, monkeypatch):
    vf = pytest.importorskip("verifiers.v1")
    from verifiers.v1.utils.loaders import load_taskset, resolve_env_config  # type: ignore[import-not-found]

    monkeypatch.syspath_prepend(str(for_prime))
    monkeypatch.delitem(sys.modules, prime_rl.PACKAGE, raising=False)
    source = prime_rl.settings(load_config(PAPER), {"train": []})["orchestrator"]["train"]["source"][0]
    tasks = list(load_taskset(resolve_env_config(source["env"]).taskset))
    queries, _ = load_queries(TEST, limit=10)
    assert [task.data.id for task in tasks] == [query.qid for query in queries]
    first, query = tasks[0], queries[0]
    kinds = [part.type for part in first.data.prompt[0].content]
    assert sorted(kinds) == ["image_url", "text"] and first.data.prompt_text == (query.question + SUFFIX).replace(
        "<image>", ""
    )
    assert isinstance(first.data.prompt[0], vf.UserMessage)
    for text, reward in ((f"\\boxed{{{query.answer}}}", 1.0), ("nothing", 0.0)):
        assert asyncio.run(first.correct(SimpleNamespace(last_reply=text))) == reward
