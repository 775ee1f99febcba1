"""Damaged checkpoints are found and the one before is used; a full disk leaves the last one as it was."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_checkpoint import CHANGES, adamw, make_toy, save, steps
from tiny_training import tiny_policy

from rethinker.replay import Selector
from rethinker.rundir import checksums, pointers
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.checkpoint import NotSaved
from rethinker.rundir.fallback import whole_checkpoint
from rethinker.rundir.folder import RunExists
from rethinker.rundir.paths import RunDir

ALL = slice(None)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return tiny_policy(tiny_folder)


@pytest.fixture(scope="module")
def optimizer(policy):
    found = adamw(policy)
    steps(policy, found, 1, seed=0)
    return found


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_any_file_is_found(policy, optimizer, tmp_path):
    folder = save(tmp_path, 1, policy, optimizer)
    assert checksums.damage(folder, ALL) is None
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix() for path in paths}
    assert {"model/model.safetensors", "model/tokenizer.json", "trainer.json", "replay.parquet"} < names
    assert any(name.startswith("state/") for name in names)
    for path in paths:
        size, name = path.stat().st_size, path.relative_to(folder).as_posix()
        for place in (0, size // 2, size - 1):
            flip(path, place)
            wrong = checksums.damage(folder, ALL)
            assert wrong and (name in wrong or name == checksums.FILE), (name, place, wrong)
            if name != checksums.FILE:  # by reading only: the size is right
                assert checksums.damage(folder) is None
            flip(path, place)
    assert checksums.damage(folder, ALL) is None


def test_a_file_that_is_short_or_missing_is_found_by_its_size(policy, optimizer, tmp_path):
    folder = save(tmp_path, 1, policy, optimizer)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        assert checksums.damage(folder), path
        path.unlink()
        assert "is missing" in (checksums.damage(folder) or ""), path
        path.write_bytes(data)
    assert checksums.damage(folder) is None


# -- the one before ---------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch):
    return make_toy(monkeypatch)


def save_episode(run: RunDir, toy, episode: int, best: bool = False, keep_last: int = 2) -> Path:
    progress = {"progress": {"episode": episode}}
    folder = save(run.checkpoints, 10 * episode, *toy, is_best=best, keep_last=keep_last, **progress)
    atomic_write_text(run.status, json.dumps({"state": "running", **progress}))
    return folder


@pytest.fixture
def run(toy, tmp_path) -> RunDir:
    """After four checkpoints, of which the first was the best and then the fourth; a stage ended at the second."""
    run = RunDir(tmp_path)
    for episode in (1, 2, 3, 4):
        folder = save_episode(run, toy, episode, best=episode in (1, 4), keep_last=3)
        if episode == 2:
            pointers.point(run.checkpoints, ["stage"], folder)
    return run


def there(run: RunDir) -> set[str]:
    return {path.name for path in run.checkpoints.glob("step-*")}


def damage(run: RunDir, *names: str) -> None:
    for name in names:
        flip(run.checkpoints / name / "model" / "weights", 0)


FIRST, SECOND, THIRD, FOURTH = (f"step-0000{episode}0" for episode in (1, 2, 3, 4))
WRONG = "the content of model/weights is not what was written"


def test_a_whole_one_is_used(run):
    assert whole_checkpoint(run) == (run.checkpoints / FOURTH, None)


def test_the_one_before_is_used(run, toy):
    damage(run, FOURTH)
    folder, warning = whole_checkpoint(run)
    assert folder.name == THIRD and warning == (
        f"damaged checkpoint ({FOURTH}: {WRONG}). The run is resumed from {THIRD}, after episode 3; lost, and trained "
        "again: episode 4. The damaged files stay until the next checkpoint is saved"
    )
    # ``best`` was the first one then, which is gone.
    names = {"last": THIRD, "previous": SECOND, "stage": SECOND}
    assert json.loads((run.checkpoints / pointers.FILE).read_text()) == names
    assert not (run.checkpoints / "best").is_symlink() and there(run) == {SECOND, THIRD, FOURTH}
    assert whole_checkpoint(run) == (folder, None)
    again = save_episode(run, toy, 4)
    assert again.name == f"{FOURTH}.1" and there(run) == {SECOND, THIRD, again.name}
    assert checksums.damage(again, ALL) is None


def test_several_are_damaged_in_several_ways(run):
    damage(run, THIRD)
    (run.checkpoints / FOURTH / "trainer.json").write_text("{")
    folder, warning = whole_checkpoint(run)
    assert folder.name == SECOND and f"{THIRD}: {WRONG}" in warning
    assert f"{FOURTH}: trainer.json has 1 bytes instead of" in warning and "trained again: episodes 3 to 4." in warning


def test_none_is_left(run):
    damage(run, SECOND, THIRD)
    (run.checkpoints / FOURTH / checksums.FILE).unlink()
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(RunExists) as refusal:
        whole_checkpoint(run)
    expected = f"({FOURTH}: checksums.json is missing; {THIRD}: {WRONG}; {SECOND}: {WRONG}). Nothing was changed"
    assert expected in str(refusal.value)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


# -- a full disk ------------------------------------------------------------------------------------------------------


def test_an_error_at_any_change_of_the_disk(toy, tmp_path, monkeypatch):
    """The one before stays, nothing of the new one does, and the next save succeeds."""
    failed = 0
    for number in itertools.count():
        run = RunDir(tmp_path / str(number))
        first = save_episode(run, toy, 1)
        done = iter(range(10**9))

        def unless_full(change, done=done, number=number):
            def do(*arguments, **options):
                if next(done) == number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return change(*arguments, **options)

            return do

        try:
            with monkeypatch.context() as patch:
                for name in CHANGES:
                    patch.setattr(os, name, unless_full(getattr(os, name)))
                last = save_episode(run, toy, 2)
        except NotSaved as error:
            failed += 1
            assert "the disk is full" in str(error) and "resume from it with --resume" in str(error)
            last = first
            named = json.loads((run.checkpoints / pointers.FILE).read_text())["last"]
            if named != first.name:  # it failed behind the new one's getting its name
                last = run.checkpoints / named
            assert f"{last.name} is untouched" in str(error)
        except OSError:
            break  # of what this test writes itself
        assert whole_checkpoint(run) == (last, None), number
        assert not [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".step")], number
        assert there(run) <= {first.name, last.name}, number
        if next(done) < number:
            break
        assert checksums.damage(save_episode(run, toy, 3), ALL) is None
    assert failed > 10


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 32 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full(policy, optimizer, small_disk):
    """Wherever it is full: in the weights, the tokenizer, the shards of the state, the samples or the JSON files."""
    checkpoints = small_disk / "checkpoints"
    first = save(checkpoints, 1, policy, optimizer, Selector())
    size = sum(path.stat().st_size for path in first.rglob("*"))
    assert 2 * size < 30_000_000
    failures = set()
    for left in (0, *(2**power for power in range(13, 18)), *(part * size // 12 for part in range(1, 12))):
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"")
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - left))
        with pytest.raises(NotSaved, match="the disk is full") as failure:
            save(checkpoints, 2, policy, optimizer, Selector())
        assert "\n" not in str(failure.value)
        failures.add(str(failure.value.__cause__))
        names = {path.name for path in checkpoints.iterdir()}
        assert names == {"last", pointers.FILE, first.name} and checksums.damage(first, ALL) is None
        ballast.unlink()
    assert len(failures) == 3, failures  # in the words of tokenizers, of torch's shards and of the others
    second = save(checkpoints, 2, policy, optimizer, Selector())
    assert checksums.damage(second, ALL) is None
