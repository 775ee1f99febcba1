"""Which checkpoint has which name: through copies that keep, lose or follow links, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rethinker.config import RunConfig, load_config, to_yaml
from rethinker.rundir import checksums
from rethinker.rundir.folder import RunExists, best_model, check_folder, check_not_lost
from rethinker.rundir.paths import RunDir
from rethinker.rundir.pointers import FILE, find, is_whole, names_after_save, point, prune, repair, set_names, whole

PARTS = ("model/weights", "state/shard", "trainer.json", "replay.parquet")


def make_step(checkpoints: Path, name: str) -> Path:
    """A whole checkpoint, as far as names go."""
    folder = checkpoints / name
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_text(name)
    checksums.write(folder)
    return folder


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run that was stopped after two checkpoints."""
    config = load_config(None, [f"runs_dir={tmp_path}", "name=run"])
    folder = RunDir(config.folder)
    for name in ("step-000001", "step-000002"):
        make_step(folder.checkpoints, name)
    point(folder.checkpoints, ["last"], folder.checkpoints / "step-000002")
    point(folder.checkpoints, ["best", "stage"], folder.checkpoints / "step-000001")
    folder.config.write_text(to_yaml(config))
    folder.metrics.write_text("lines\n")
    (folder.folder / "rollouts").mkdir()
    folder.rollouts(1).write_text("responses")
    folder.status.write_text(json.dumps({"state": "stopped", "progress": {"episode": 2}}))
    return folder


def config_of(run: RunDir) -> RunConfig:
    return load_config(run.config)


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Every file, folder and link in ``folder``."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def names(run: RunDir) -> dict[str, str]:
    """What is in the checkpoint of each name."""
    found = {name: find(run.checkpoints, name) for name in ("last", "best", "stage")}
    return {name: (folder / "trainer.json").read_text() for name, folder in found.items() if folder}


EXPECTED = {"last": "step-000002", "best": "step-000001", "stage": "step-000001"}


def drop_links(run: RunDir) -> None:
    for path in run.checkpoints.iterdir():
        if path.is_symlink():
            path.unlink()


def follow_links(run: RunDir) -> None:
    copy = run.folder.with_name("copy")
    subprocess.run(["cp", "-rL", run.folder, copy], check=True)
    shutil.rmtree(run.folder)
    copy.rename(run.folder)
    assert not (run.checkpoints / "last").is_symlink() and (run.checkpoints / "last").is_dir()


def drop_file(run: RunDir) -> None:
    (run.checkpoints / FILE).unlink()


def drop_steps(run: RunDir) -> None:
    for path in run.checkpoints.glob("step-*"):
        shutil.rmtree(path)


def move(run: RunDir) -> None:
    """A link of an older version, to a folder on another disk."""
    drop_file(run)
    elsewhere = run.folder.parent / "disk"
    shutil.move(run.checkpoints / "step-000002", elsewhere)
    (run.checkpoints / "last").unlink()
    (run.checkpoints / "last").symlink_to(elsewhere)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [drop_links],
        [follow_links],
        [drop_file],  # as older versions wrote it
        [follow_links, drop_file],
        [follow_links, drop_steps],
        [follow_links, drop_file, drop_steps],
        [move],
    ],
    ids=lambda changes: ", ".join(change.__name__ for change in changes) or "as it was",
)
def test_copies(run, changes):
    """Every name leads to what it led to, at once and after a resume has put the layout right."""
    for change in changes:
        change(run)
    assert names(run) == EXPECTED
    assert best_model(run.folder).samefile(find(run.checkpoints, "best") / "model")
    assert check_folder(config_of(run), resume=True) == find(run.checkpoints, "last")
    repair(run.checkpoints, EXPECTED)
    assert names(run) == EXPECTED
    third = make_step(run.checkpoints, "step-000003")
    point(run.checkpoints, ["last"], third)
    prune(run.checkpoints)
    assert names(run) == EXPECTED | {"last": "step-000003"}
    for name, content in names(run).items():
        link = run.checkpoints / name
        assert link.is_symlink() and (link / "trainer.json").read_text() == content
        assert not os.path.isabs(os.readlink(link))  # a run's folder can be moved


def test_a_file_system_without_links(run, monkeypatch):
    drop_links(run)

    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    repair(run.checkpoints, EXPECTED)
    third = make_step(run.checkpoints, "step-000003")
    point(run.checkpoints, ["last", "best"], third)
    prune(run.checkpoints)
    assert names(run) == EXPECTED | {"last": "step-000003", "best": "step-000003"}
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [FILE, "step-000001", "step-000003"]


def test_a_name_that_is_given_by_hand(run):
    """Text that a person can write; the checkpoints of others are left alone."""
    (run.checkpoints / FILE).write_text('{"last": "step-000001", "best": "step-000009"}')
    assert names(run) == {"last": "step-000001", "best": "step-000001", "stage": "step-000001"}
    repair(run.checkpoints, EXPECTED)
    assert os.readlink(run.checkpoints / "last") == "step-000001"
    (run.checkpoints / FILE).write_text('{"last": ')
    with pytest.raises(ValueError, match=r"pointers\.json is not valid JSON"):
        find(run.checkpoints, "last")


def lose_last(run: RunDir) -> None:
    """A copy of a run of an older version: no file and no links."""
    drop_links(run)
    drop_file(run)


def lose_its_folder(run: RunDir) -> None:
    shutil.rmtree(run.checkpoints / "step-000002")


def lose_parts(run: RunDir) -> None:
    (run.checkpoints / "step-000001" / "replay.parquet").unlink()
    (run.checkpoints / "step-000002" / "state" / "shard").write_text("half")


def lose_a_link(run: RunDir) -> None:
    """Dangling, and the run of an older version."""
    drop_file(run)
    lose_its_folder(run)


def lose_everything(run: RunDir) -> None:
    shutil.rmtree(run.checkpoints)


@pytest.mark.parametrize("state", ["stopped", "running", "starting"])
@pytest.mark.parametrize(
    ("lose", "left"),
    [
        (lose_last, ["step-000001", "step-000002"]),
        (lose_its_folder, ["step-000001"]),
        (lose_parts, []),
        (lose_a_link, ["step-000001"]),
        (lose_everything, []),
    ],
)
def test_a_lost_checkpoint_is_no_start_from_zero(run, lose, left, state):
    """It would overwrite what the run has written. The message says what is there, and how to go on with it."""
    lose(run)
    run.status.write_text(json.dumps({"state": state, "progress": {"episode": 2}}))
    before = contents(run.folder)
    with pytest.raises(RunExists, match=f"last checkpoint is (missing|incomplete).*{', '.join(left)}") as refusal:
        check_folder(config_of(run), resume=True)
    assert contents(run.folder) == before and whole(run.checkpoints) == left
    if left:
        command = str(refusal.value).partition("e.g. ")[2]
        subprocess.run(command, shell=True, check=True)
        assert check_folder(config_of(run), resume=True) == run.checkpoints / left[-1]
    else:
        assert "copy them again" in str(refusal.value)


def test_a_run_that_saved_nothing_starts_from_zero(run):
    """Killed before its first checkpoint was whole, or while it saved it: that is no loss."""
    shutil.rmtree(run.checkpoints)
    run.status.write_text(json.dumps({"state": "running", "progress": {"episode": 0}}))
    assert check_folder(config_of(run), resume=True) is None
    make_step(run.checkpoints, ".step-000001.tmp")
    assert check_folder(config_of(run), resume=True) is None
    (run.checkpoints / FILE).write_text("{}")
    (run.checkpoints / ".step-000001.tmp").rename(run.checkpoints / "step-000001")
    assert check_folder(config_of(run), resume=True) is None


def test_a_finished_run_can_be_looked_at_without_its_checkpoints(run):
    """As by an ablation's table; trained anew it is not."""
    shutil.rmtree(run.checkpoints)
    run.status.write_text(json.dumps({"state": "finished", "progress": {"episode": 2}}))
    assert check_folder(config_of(run), resume=True) is None
    with pytest.raises(RunExists, match="last checkpoint is missing"):
        check_not_lost(run)


def test_a_copy_without_its_config(run):
    config = config_of(run)
    run.config.unlink()
    for resume in (True, False):
        with pytest.raises(RunExists, match=r"has checkpoints but no config\.yaml"):
            check_folder(config, resume=resume)


def test_half_a_checkpoint(tmp_path):
    assert is_whole(make_step(tmp_path, "a"))
    for number, part in enumerate((*PARTS, checksums.FILE)):
        folder = make_step(tmp_path, f"{number}")
        (folder / part).unlink()
        assert not is_whole(folder)
    assert not is_whole(tmp_path / "nowhere")


def test_an_incomplete_one_with_one_before_it_is_not_lost(run):
    (run.checkpoints / "step-000002" / "state" / "shard").unlink()
    assert check_folder(config_of(run), resume=True) == run.checkpoints / "step-000002"


def test_a_checkpoint_of_an_older_version(run):
    (run.checkpoints / "step-000002" / "optimizer.safetensors").touch()
    with pytest.raises(RunExists, match=r"from a version of rethinker that saved optimizer\.safetensors.*model\.path="):
        check_folder(config_of(run), resume=True)


def saved(run: RunDir, name: str, keep_last: int, best: bool = False) -> dict[str, str]:
    folder = make_step(run.checkpoints, name)
    set_names(run.checkpoints, names_after_save(run.checkpoints, folder, best=best, keep_last=keep_last))
    prune(run.checkpoints)
    written = json.loads((run.checkpoints / FILE).read_text())
    links = {path.name: os.readlink(path) for path in run.checkpoints.iterdir() if path.is_symlink()}
    assert links == written
    assert {path.name for path in run.checkpoints.glob("step-*")} == set(written.values())
    return written


def test_the_newest_ones_are_kept(run):
    others = {"best": "step-000001", "stage": "step-000001"}
    assert saved(run, "step-000003", 1) == {"last": "step-000003"} | others
    assert saved(run, "step-000004", 3) == {"last": "step-000004", "previous": "step-000003"} | others
    three = {"last": "step-000005", "previous": "step-000004", "previous-2": "step-000003"}
    assert saved(run, "step-000005", 3) == three | others
    three = {"last": "step-000006", "previous": "step-000005", "previous-2": "step-000004"}
    assert saved(run, "step-000006", 3) == three | others
    two = {"last": "step-000007", "previous": "step-000006", "best": "step-000007", "stage": "step-000001"}
    assert saved(run, "step-000007", 2, best=True) == two
    follow_links(run)
    repair(run.checkpoints, EXPECTED)
    assert find(run.checkpoints, "previous").name == "step-000006"
    drop_file(run)  # and a copy that followed links and lost the file
    shutil.rmtree(run.checkpoints / "step-000006")
    (run.checkpoints / "previous").unlink()
    make_step(run.checkpoints, "previous")
    repair(run.checkpoints, EXPECTED)
    assert find(run.checkpoints, "previous").name.startswith("step-copy-of-previous")
