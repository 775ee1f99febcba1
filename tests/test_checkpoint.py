"""Checkpoints: everything comes back exactly, and a crash leaves a whole one."""

from __future__ import annotations

import errno
import itertools
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_training import random_samples, same, tiny_policy, weights

from rethinker.config import ModelConfig, RunConfig
from rethinker.lab.jobs.preflight import checkpoint_bytes
from rethinker.policy.loading import load_policy
from rethinker.policy.weights import trained_parameters
from rethinker.replay import SelectiveSampleReplay, Selector
from rethinker.rundir import checkpoint, pointers
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.pointers import find, point, repair
from rethinker.types import Rethinking


@pytest.fixture
def policy(tiny_folder):
    return tiny_policy(tiny_folder)


def adamw(policy, lr=1e-3):
    return torch.optim.AdamW(trained_parameters(policy.model), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)


def steps(policy, optimizer, count: int, seed: int) -> None:
    """Updates with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()


def kept(folder) -> list[str]:
    """The checkpoints and their links."""
    return sorted(path.name for path in folder.iterdir() if path.name != pointers.FILE)


def save(folder, step, policy, optimizer, selector=None, is_best=False, keep_last=1, **state):
    return checkpoint.save_checkpoint(
        folder,
        step,
        policy=policy,
        optimizer=optimizer,
        selector_state=(selector or Selector()).state_dict(),
        trainer_state=state,
        best=is_best,
        keep_last=keep_last,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"freeze_vision": True},
        {"lora_rank": 4},
        {"lora_rank": 8, "dtype": "bfloat16", "lora_targets": ("q_proj", "down_proj")},
    ],
    ids=str,
)
def test_a_checkpoint_is_as_large_as_the_check_of_the_disk_says(tiny_folder, tmp_path, settings):
    """But for headers, and what is no tensor."""
    config = RunConfig(model=ModelConfig(path=str(tiny_folder), **settings))
    policy = load_policy(config.model)
    optimizer = adamw(policy)
    steps(policy, optimizer, 1, seed=0)
    folder = save(tmp_path, 1, policy, optimizer)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert checkpoint_bytes(config, None) == pytest.approx(size, rel=0.1) and size > 2**16


def test_optimizer_and_weights_go_on_bit_for_bit(policy, tmp_path):
    optimizer = adamw(policy)
    steps(policy, optimizer, 3, seed=0)
    optimizer.param_groups[0]["lr"] = 1e-3 / 3
    folder = save(tmp_path, 3, policy, optimizer)
    again = load_policy(ModelConfig(path=str(folder / "model")))
    assert same(weights(policy), weights(again))
    other = adamw(again, lr=1.0)
    checkpoint.load_optimizer(folder, other)
    assert other.param_groups[0]["lr"] == 1e-3 / 3
    steps(policy, optimizer, 2, seed=1)
    steps(again, other, 2, seed=1)
    assert same(weights(policy), weights(again))
    for one, two in zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        mine, theirs = optimizer.state[one], other.state[two]
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_an_optimizer_without_state(policy, tmp_path):
    """A first stage of skipped steps only."""
    folder = save(tmp_path, 0, policy, adamw(policy))
    other = adamw(policy)
    checkpoint.load_optimizer(folder, other)
    assert not other.state


def test_an_optimizer_of_another_model_is_refused(policy, tmp_path):
    folder = save(tmp_path, 1, policy, adamw(policy))
    policy.model.model.visual.requires_grad_(False)
    words = r"other parameters: model\.visual\.blocks\.0.* and \d+ more only there, none only in this run"
    with pytest.raises(ValueError, match=words):
        checkpoint.load_optimizer(folder, adamw(policy))


def test_the_buffer_goes_on_exactly(policy, queries, tmp_path):
    samples = random_samples(policy, queries, 8)
    rethinking = Rethinking("self-correction", "so", 1, 1, False, own_answer=True, kept=True)
    samples[1] = replace(samples[1], rethinking=rethinking, nll_mask=(True,) * len(samples[1].response.token_ids))
    idle = replace(samples[0], advantage=0.0)
    selector = SelectiveSampleReplay(seed=5, lifetime=2)
    selector.start_episode()
    selector.select([*samples, idle, idle])
    folder = save(tmp_path, 1, policy, adamw(policy), selector)
    again = SelectiveSampleReplay(seed=99, lifetime=2)
    again.load_state_dict(checkpoint.load_selector_state(folder))
    for mine in (selector, again):
        mine.start_episode()
    expected = selector.select([idle] * 16)
    assert again.select([idle] * 16) == expected
    assert all(sample.replayed for sample in expected)
    assert again.state_dict() == selector.state_dict()


@pytest.mark.parametrize("mode", ["grpo", "filter"])
def test_selectors_without_a_buffer(policy, tmp_path, mode):
    from rethinker.replay import make_selector

    folder = save(tmp_path, 1, policy, adamw(policy), make_selector(mode))
    make_selector(mode).load_state_dict(checkpoint.load_selector_state(folder))
    with pytest.raises(ValueError, match=f'saved selector is "{mode}"'):
        make_selector("ssr").load_state_dict(checkpoint.load_selector_state(folder))


def test_trainer_state(policy, tmp_path):
    state = {"progress": {"step": 3}, "best": 1 / 3, "order": {"epoch": 1, "position": 2}, "seconds": 0.1}
    assert checkpoint.load_trainer_state(save(tmp_path, 3, policy, adamw(policy), **state)) == state
    with pytest.raises(FileNotFoundError, match=r"trainer\.json"):
        checkpoint.load_trainer_state(tmp_path)


def test_links_and_prune(policy, tmp_path):
    optimizer = adamw(policy)
    folders = [save(tmp_path, step, policy, optimizer) for step in (1, 2, 3, 4)]
    assert (tmp_path / "last").resolve() == folders[3]
    assert not os.path.isabs(os.readlink(tmp_path / "last"))  # a run's folder can be moved
    assert kept(tmp_path) == ["last", "step-000004"]
    point(tmp_path, ["first-stage"], folders[3])
    save(tmp_path, 5, policy, optimizer, is_best=True)
    save(tmp_path, 6, policy, optimizer)
    assert kept(tmp_path) == ["best", "first-stage", "last", "step-000004", "step-000005", "step-000006"]
    assert (tmp_path / "best" / "model" / "model.safetensors").exists()


def test_prune_sweeps_what_a_crash_left(policy, tmp_path):
    (tmp_path / ".step-000009.tmp" / "model").mkdir(parents=True)
    folder = save(tmp_path, 1, policy, adamw(policy))
    assert kept(tmp_path) == ["last", folder.name]


def test_everything_is_on_the_disk_before_it_gets_its_name(policy, tmp_path, monkeypatch):
    """Every file and folder under the temporary name is synced, by inode, before the rename."""
    synced: set[int] = set()
    fsync, rename, missing = os.fsync, os.replace, []

    def watched_rename(source, target):
        if str(source).endswith(".tmp") and os.path.isdir(source) and not os.path.islink(source):
            paths = [source, *source.rglob("*")]
            missing.extend(str(path) for path in paths if path.stat().st_ino not in synced)
            assert len(paths) > 5
        rename(source, target)

    monkeypatch.setattr(os, "fsync", lambda number: (synced.add(os.fstat(number).st_ino), fsync(number)))
    monkeypatch.setattr(os, "replace", watched_rename)
    save(tmp_path, 1, policy, adamw(policy))
    assert missing == [] and tmp_path.stat().st_ino in synced


def test_a_second_checkpoint_of_a_step_never_touches_the_first(policy, tmp_path):
    """Skipped steps do not count: the folder that ``last`` names must stay whole until the new one is."""
    optimizer = adamw(policy)
    first = save(tmp_path, 7, policy, optimizer, is_best=True, note=1)
    second = save(tmp_path, 7, policy, optimizer, note=2)
    assert first != second and checkpoint.load_trainer_state(first) == {"note": 1}
    third = save(tmp_path, 7, policy, optimizer, is_best=True, note=3)
    assert kept(tmp_path) == ["best", "last", third.name] and third.name == "step-000007.2"
    assert checkpoint.load_trainer_state(tmp_path / "last") == {"note": 3}


@pytest.mark.parametrize("failing", ["save_model", "write_samples", "atomic_write_text", "set_names"])
def test_a_crash_while_saving_leaves_the_last_checkpoint(policy, tmp_path, monkeypatch, failing):
    optimizer = adamw(policy)
    save(tmp_path, 1, policy, optimizer, note="good")

    def crash(*_, **__):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, failing, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            save(tmp_path, 2, policy, optimizer, note="bad")
    assert checkpoint.load_trainer_state(tmp_path / "last") == {"note": "good"}
    save(tmp_path, 2, policy, optimizer, note="better")
    assert checkpoint.load_trainer_state(tmp_path / "last") == {"note": "better"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


CHANGES = ("fsync", "mkdir", "rename", "replace", "rmdir", "symlink", "unlink")  # of os: all that touches the disk
NAMES = ("last", "previous", "best", "stage", "end")
ACCURACIES = (0.3, 0.5, 0.4, 0.6)  # after each episode


class Killed(BaseException):
    pass


def make_toy(monkeypatch):
    """A policy of four numbers and its optimiser, and a disk that needs no time."""
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr(checkpoint, "save_model", lambda _, folder, **__: atomic_write_text(folder / "weights", "4"))
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.named_parameters())
    steps(None, optimizer, 1, seed=0)
    return SimpleNamespace(model=model), optimizer


@pytest.fixture
def toy(monkeypatch):
    return make_toy(monkeypatch)


def run_to_the_end(folder, toy) -> None:
    """The saves of a run, resumed where ``last`` was, as TrainingRun makes them."""
    last = find(folder, "last")
    state = checkpoint.load_trainer_state(last) if last else {"episode": 0, "best": 0.0}
    if last:
        repair(folder, NAMES)
    while True:
        if name := {2: "stage", len(ACCURACIES): "end"}.get(state["episode"]):
            point(folder, [name], find(folder, "last"))
            pointers.prune(folder)
        if state["episode"] == len(ACCURACIES):
            return
        accuracy, best = ACCURACIES[state["episode"]], state["best"]
        state = {"episode": state["episode"] + 1, "best": max(accuracy, best)}
        save(folder, state["episode"], *toy, is_best=accuracy > best, keep_last=2, **state)


def named(folder) -> dict[str, int]:
    """Name -> episode of its checkpoint."""
    found = {name: find(folder, name) for name in NAMES}
    return {name: checkpoint.load_trainer_state(place)["episode"] for name, place in found.items() if place}


def kill_at(number: int, patch) -> None:
    """The change ``number`` of the disk, and all after it, do not happen any more."""
    done = iter(range(10**9))

    def unless_killed(change):
        def do(*arguments, **options):
            if next(done) >= number:
                raise Killed
            return change(*arguments, **options)

        return do

    for name in CHANGES:
        patch.setattr(os, name, unless_killed(getattr(os, name)))


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_a_kill_at_any_moment_changes_nothing(toy, tmp_path, monkeypatch, links):
    """Wherever a run is killed while it saves, ``best`` is the one whose accuracy trainer.json has, and the run that
    is resumed ends as the one that was never killed."""
    if not links:
        monkeypatch.setattr(os, "symlink", no_links)
    run_to_the_end(tmp_path / "whole", toy)
    expected = named(tmp_path / "whole")
    assert expected == {"last": 4, "previous": 3, "best": 4, "stage": 2, "end": 4}
    for number in itertools.count():
        folder = tmp_path / str(number)
        try:
            with monkeypatch.context() as patch:
                kill_at(number, patch)
                run_to_the_end(folder, toy)
        except Killed:
            there = named(folder)
            assert {"last", "best"} <= there.keys() or not there
            if there:
                best = checkpoint.load_trainer_state(find(folder, "last"))["best"]
                assert ACCURACIES[there["best"] - 1] == best, number
            run_to_the_end(folder, toy)
        else:
            assert number > 100  # that many changes a run makes
            break
        assert named(folder) == expected, number
        step_folders = {path.resolve() for path in folder.iterdir() if path.name.startswith("step-")}
        assert step_folders == {find(folder, name).resolve() for name in expected}, number
        assert {path.name for path in folder.iterdir() if path.is_symlink()} == (set(expected) if links else set())
        assert all((folder / name).resolve() == find(folder, name).resolve() for name in expected if links)
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")], number


def no_links(*_, **__):
    raise OSError(errno.EPERM, "Operation not permitted")


def test_the_model_folder_opens_with_from_pretrained(policy, tmp_path):
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    folder = save(tmp_path, 1, policy, adamw(policy)) / "model"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    for name, value in model.named_parameters():
        assert torch.equal(value, dict(policy.model.named_parameters())[name]), name
    processor = AutoProcessor.from_pretrained(folder)
    assert (
        processor.tokenizer.eos_token_id == policy.eos_id and processor.chat_template == policy.processor.chat_template
    )


def test_nothing_is_pickled(policy, tmp_path):
    optimizer = adamw(policy)
    steps(policy, optimizer, 1, seed=0)
    folder = save(tmp_path, 1, policy, optimizer)
    endings = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert endings <= {".safetensors", ".parquet", ".json", ".jinja", ".txt"}, endings
    json.loads((folder / "trainer.json").read_text())


def test_adapters_come_back(tiny_folder, tmp_path):
    config = ModelConfig(path=str(tiny_folder), lora_rank=4)
    policy = load_policy(config)
    optimizer = adamw(policy, lr=0.1)
    steps(policy, optimizer, 2, seed=0)
    folder = save(tmp_path, 2, policy, optimizer)
    again = load_policy(config)
    assert not same(weights(policy), weights(again))
    checkpoint.load_adapter(folder, again)
    assert same(weights(policy), weights(again))
    other = adamw(again)
    checkpoint.load_optimizer(folder, other)
    steps(policy, optimizer, 1, seed=1)
    steps(again, other, 1, seed=1)
    assert same(weights(policy), weights(again))
    with pytest.raises(ValueError, match=r"adapters in .* do not fit"):
        checkpoint.load_adapter(folder, load_policy(replace(config, lora_rank=2)))
