"""Runs and reports reach a server (tests/wandb_server.py, on loopback) as the W&B libraries send them; no key stays."""

from __future__ import annotations

import json
import secrets
import socket
from io import BytesIO

import pytest
import wandb
from PIL import Image
from synthetic_run import write_run
from wandb_server import ENTITY, Artifact, WandbServer, serve

from rethinker.cli import main
from rethinker.config import RunConfig, TrackingConfig, load_config, to_yaml
from rethinker.config.schema import ConfigError
from rethinker.lab.report.wandb_report import report_blocks
from rethinker.lab.wandb import mirror as wandb_mirror
from rethinker.lab.wandb.mirror import artifact_name, axes, evaluation_numbers, whole_groups
from rethinker.lab.wandb.sync import waiting
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.glossary import RECORDS, ROLLOUT_COLUMNS
from rethinker.rundir.metrics import histogram
from rethinker.rundir.pointers import point
from rethinker.rundir.tracking import Tracker

KEY = secrets.token_hex(20)


@pytest.fixture(autouse=True)
def no_html(monkeypatch):
    """report.html has tests of its own; its figures take seconds."""
    monkeypatch.setattr("rethinker.lab.report.write.write_report", lambda run: run)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without netrc, a key in the environment, no W&B settings of the machine."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()
    yield folder
    wandb.teardown()


@pytest.fixture
def server(home, monkeypatch):
    with serve(KEY) as state:
        monkeypatch.setenv("WANDB_BASE_URL", state.url)
        yield state
        wandb.teardown()


def run_config(folder, **settings) -> RunConfig:
    config = RunConfig(name="run", runs_dir=str(folder), tracking=TrackingConfig(wandb=True, **settings))
    atomic_write_text(config.folder / "config.yaml", to_yaml(config))
    return config


def row(qid: str, index: int, images: list[str]) -> dict:
    values = dict.fromkeys(ROLLOUT_COLUMNS)
    return values | {"qid": qid, "sample_id": f"1/{qid}/{index}", "images": images, "text": f"answer {index}"}


ESTIMATE = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8, "clusters": 4}
SUMMARY = {"modes": {"plain": {"greedy": ESTIMATE, "pass@1": ESTIMATE, "rethinking": ESTIMATE, "independent": None}}}


def live(config: RunConfig, episodes: range, image_files: list[str]) -> None:
    """What a training process does to its tracker."""
    writer = Tracker(config, make_sink=wandb_mirror.open_mirror)
    for episode in episodes:
        writer.log("step", "s", episode, 2 * episode, {"loss/total": 0.125 * episode, "loss/kl": None})
        metrics = {"queries/effective": 0.25 * episode, "advantages/before": histogram([-1.0, 0.0, 1.0, 1.0])}
        writer.log("episode", "s", episode, 2 * episode, metrics)
        first, second = row("a", 0, [image_files[0]]), row("b", 0, [])
        writer.rollouts(episode, [first, second, row("a", 1, [image_files[0]]), row("b", 1, [])])
    atomic_write_text(config.folder / "evaluation" / "s.json", json.dumps(SUMMARY))
    writer.evaluation("s")
    writer.close()
    wandb.teardown()  # as at the end of a process: finish() returns before the last of a recording is written


def all_arrived(server: WandbServer) -> None:
    """Nothing was dropped, every artifact was committed, and every request was understood."""
    assert server.unknown == [] and server.refused == []
    assert server.artifacts and all(artifact.committed for artifact in server.artifacts)
    for run in server.runs.values():
        assert run.dropped == []


def write_checkpoint(config: RunConfig) -> None:
    checkpoints = config.folder / "checkpoints"
    for step in (2, 4):
        folder = checkpoints / f"step-{step:06d}"
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.safetensors").write_bytes(f"weights of step {step}".encode())
        (folder / "state").mkdir()
        (folder / "state" / "shard.safetensors").write_bytes(f"moments of step {step}".encode())
        (folder / "replay.parquet").write_text("{}")
        (folder / "trainer.json").write_text(json.dumps({"trainer": {"progress": {"step": step, "episode": 1}}}))
    point(checkpoints, ["best"], checkpoints / "step-000002")
    point(checkpoints, ["last"], checkpoints / "step-000004")


def no_key_under(folder) -> None:
    for file in folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def named(server: WandbServer, start: str) -> list[Artifact]:
    return [artifact for artifact in server.artifacts if artifact.name.startswith(start)]


def check_inputs(server: WandbServer, run_id: str) -> None:
    """Lineage: data by digest and config, both used by the run."""
    (data,), (config,) = named(server, "data-"), named(server, "config-run")
    for artifact in (data, config):
        assert artifact.committed and artifact.used_by == [run_id]
    assert json.loads(data.files["digests.json"])["train"]["path"] == RunConfig().data.train
    assert b"name: run" in config.files["config.yaml"]


def check_table(server: WandbServer, run_id: str, columns: int) -> bytes:
    """The table of the last episode: whole groups, with the image in the row, whose file is returned."""
    table = named(server, f"run-{run_id}-responses")[-1]
    content = json.loads(table.files["responses.table.json"])
    assert content["columns"][0] == "image" and len(content["columns"]) == columns
    at = content["columns"].index("sample_id")
    assert [line[at] for line in content["data"]] == ["1/a/0", "1/a/1", "1/b/0"]
    image = content["data"][0][0]
    assert image["_type"] == "image-file" and table.files[image["path"]].startswith(b"\x89PNG")
    assert content["data"][2][0] is None
    return table.files[image["path"]]


def test_an_online_run_arrives(tmp_path, server, image_files):
    config = run_config(
        tmp_path,
        wandb_mode="online",
        wandb_group="pair",
        wandb_tags=("a", "b"),
        wandb_responses=3,
        wandb_checkpoints=True,
    )
    write_checkpoint(config)
    clear = tmp_path / "clear.png"
    Image.new("LA", (8, 8)).save(clear)  # black, and wholly transparent
    live(config, range(1, 3), [str(clear)])
    all_arrived(server)
    (name,) = server.runs
    run = server.runs[name]
    assert name == (config.folder / "wandb_id").read_text() and run.complete
    assert run.fields["groupName"] == "pair" and run.fields["jobType"] == "train"
    assert run.fields["tags"] == ["a", "b"] and run.fields["displayName"] == "run"
    episodes = [line for line in run.history if "queries/effective" in line]
    assert [(line["episode"], line["queries/effective"]) for line in episodes] == [(1, 0.25), (2, 0.5)]
    assert [line["loss/total"] for line in run.history if "loss/total" in line] == [0.125, 0.25]
    assert episodes[0]["advantages/before"]["_type"] == "histogram"
    assert sum(episodes[0]["advantages/before"]["values"]) == 4
    assert run.summary["evaluation/s/plain/pass@1_low"] == 0.25
    with Image.open(BytesIO(check_table(server, name, len(ROLLOUT_COLUMNS)))) as seen:
        assert seen.convert("RGBA").getcolors() == [(64, (255, 255, 255, 255))]  # as the policy sees it
    check_inputs(server, name)
    models = named(server, "checkpoint-run")
    assert sorted(sorted(artifact.aliases) for artifact in models) == [["best", "latest"], ["last", "latest"]]
    for artifact in models:
        step = json.loads(artifact.fields["metadata"])["step"]
        assert step == (2 if "best" in artifact.aliases else 4) and artifact.committed
        assert artifact.files["model/model.safetensors"] == f"weights of step {step}".encode()
        assert {"state/shard.safetensors", "trainer.json", "replay.parquet"} <= artifact.files.keys()
    no_key_under(tmp_path)
    assert KEY not in json.dumps([run.fields, run.lines])


def test_offline_recordings_are_sent_later(tmp_path, server, image_files, capsys):
    """Two processes of one run, the second went on with it; nothing is asked of a server before the one command."""
    config = run_config(tmp_path, wandb_responses=3)
    live(config, range(1, 3), image_files)
    live(config, range(3, 4), image_files)
    assert not server.operations
    run = str(config.folder)
    assert main(["sync", run]) == 0
    name = (config.folder / "wandb_id").read_text()
    assert f"2 recordings sent; {server.url}/{ENTITY}/rethinker/runs/{name}" in capsys.readouterr().out
    all_arrived(server)
    assert list(server.runs) == [name]
    found = [line["episode"] for line in server.runs[name].history if "queries/effective" in line]
    assert found == [1, 2, 3]
    assert [line["_step"] for line in server.runs[name].history] == list(range(9))  # two lines and a table per episode
    check_table(server, name, len(ROLLOUT_COLUMNS))
    assert any(name in artifact.used_by for artifact in named(server, "data-"))
    before = dict(server.operations)
    assert main(["sync", run]) == 0
    assert "nothing new to send, 2 sent before" in capsys.readouterr().out
    assert server.operations["UpsertBucket"] == before["UpsertBucket"]
    no_key_under(tmp_path)


def test_a_run_that_recorded_nothing_does_not_stop_a_folder_of_runs(tmp_path, server, image_files, capsys):
    """Unless it is named itself, or there is no other."""
    config = run_config(tmp_path / "runs", wandb_responses=0)
    live(config, range(1, 3), image_files)
    bare = write_run(tmp_path / "runs" / "bare", stages=(1,), queries=3, held_out=4)
    assert main(["sync", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr()
    assert f"skipped: {bare}: nothing was recorded for W&B" in said.err and "1 recording sent" in said.out
    assert len(server.runs) == 1
    assert main(["sync", str(tmp_path / "runs"), str(bare)]) == 2
    assert f"{bare} recorded nothing for W&B" in capsys.readouterr().err
    config.folder.rename(tmp_path / "elsewhere")
    assert main(["sync", str(tmp_path / "runs")]) == 2
    assert f"no run in {tmp_path / 'runs'} can be used: nothing was recorded" in capsys.readouterr().err


def test_steps_go_on_after_a_kill(tmp_path, server, image_files):
    """The second process repeats an episode that the first one had recorded after its checkpoint: W&B gets both."""
    config = run_config(tmp_path, wandb_responses=0)
    live(config, range(1, 3), image_files)
    live(config, range(2, 4), image_files)
    assert main(["sync", str(config.folder)]) == 0
    all_arrived(server)
    (run,) = server.runs.values()
    assert [line["episode"] for line in run.history if "queries/effective" in line] == [1, 2, 2, 3]
    other = run_config(tmp_path / "elsewhere", wandb_responses=0)  # of the same name
    live(other, range(1, 2), image_files)
    assert main(["sync", str(other.folder)]) == 0 and len(server.runs) == 2


def test_a_run_that_was_moved_is_refused(tmp_path, server, image_files, capsys):
    """Recordings name their tables' files by absolute paths; wandb leaves out what is not there, and says nothing."""
    config = run_config(tmp_path / "there", wandb_responses=3)
    live(config, range(1, 3), image_files)
    here = tmp_path / "here"
    config.folder.rename(here)
    assert main(["sync", str(here)]) == 2
    assert f"ln -s {here} {config.folder}" in capsys.readouterr().err and not server.runs
    config.folder.mkdir()
    assert main(["sync", str(here)]) == 2
    assert f"rethinker sync {config.folder}" in capsys.readouterr().err and not server.runs
    config.folder.rmdir()
    config.folder.symlink_to(here)  # what the message advises
    assert main(["sync", str(here)]) == 0
    all_arrived(server)
    (name,) = server.runs
    check_table(server, name, len(ROLLOUT_COLUMNS))


def test_a_broken_recording_does_not_block_the_others(tmp_path, server, image_files, capsys):
    """kill -9 leaves a file without any record, or one without its end: named, set aside, and the others are sent."""
    config = run_config(tmp_path, wandb_responses=0)
    for episode in (1, 2, 3):
        live(config, range(episode, episode + 1), image_files)
    first, second, _ = waiting(config.folder)
    whole = second.read_bytes()
    first.write_bytes(first.read_bytes()[:7])
    second.write_bytes(whole[: len(whole) // 2])
    assert main(["sync", str(config.folder)]) == 1
    said = capsys.readouterr().out
    assert "1 recording sent" in said and f"{first}: cut short" in said and f"{second}: cut short" in said
    (run,) = server.runs.values()
    assert run.history[-1]["episode"] == 3 and run.dropped == []
    assert main(["sync", str(config.folder)]) == 0
    assert "nothing new to send, 1 sent before" in capsys.readouterr().out


def test_a_recording_that_has_grown_is_tried_again(tmp_path, server, image_files):
    """Its process was still writing when it was sent first."""
    config = run_config(tmp_path, wandb_responses=0)
    live(config, range(1, 4), image_files)
    (file,) = waiting(config.folder)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 3 // 4])
    assert main(["sync", str(config.folder)]) == 1
    file.write_bytes(whole)
    assert main(["sync", str(config.folder)]) == 0
    (run,) = server.runs.values()
    assert [line["episode"] for line in run.history if "queries/effective" in line] == [1, 2, 3]


def test_an_online_run_that_lost_the_network_is_sent_later(tmp_path, home, image_files, monkeypatch, capsys):
    """The run goes on and ends; close() waits for so long only; what did not arrive is sent by the command it names."""
    monkeypatch.setattr(wandb_mirror, "FINISH_SECONDS", 1.0)
    config = run_config(tmp_path, wandb_mode="online", wandb_responses=3)
    with serve(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        writer = Tracker(config, make_sink=wandb_mirror.open_mirror)
    writer.log("episode", "s", 1, 1, {"queries/effective": 0.25})
    writer.rollouts(1, [row("a", 0, [image_files[0]])])
    writer.close()
    assert "W&B failed (TimeoutError" in capsys.readouterr().out
    wandb.teardown()
    with serve(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert main(["sync", str(config.folder)]) == 0
        assert "what of its tables had not arrived is in rollouts/ only" in capsys.readouterr().out
        assert server.unknown == [] and server.refused == []
        (run,) = server.runs.values()
        assert [line["queries/effective"] for line in run.history if "queries/effective" in line] == [0.25]
        assert run.complete and run.dropped == []
        wandb.teardown()


def test_what_an_online_run_has_sent_is_not_sent_again(tmp_path, server, image_files, capsys):
    config = run_config(tmp_path, wandb_mode="online", wandb_responses=3)
    live(config, range(1, 3), image_files)
    assert main(["sync", str(config.folder)]) == 0
    assert "nothing new to send, 1 sent before" in capsys.readouterr().out
    no_key_under(tmp_path)


def test_a_key_is_asked_for_before_a_run_is_launched(tmp_path, home, monkeypatch, capsys):
    """tracking.wandb_mode=online without a key: an error that says what to do, and no folder of a run."""
    monkeypatch.setattr("rethinker.lab.jobs.train", lambda config, **_: 0)
    monkeypatch.delenv("WANDB_API_KEY")
    file = tmp_path / "a.yaml"
    settings = f"{{name: run, runs_dir: {tmp_path}/runs, tracking: {{wandb: true, wandb_mode: online}}}}"
    atomic_write_text(file, settings)
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert all(words in said for words in ("wandb login", "WANDB_API_KEY", "tracking.wandb_mode=offline"))
    assert not (tmp_path / "runs").exists()
    assert main(["train", str(file), "tracking.wandb_mode=offline"]) == 0
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["train", str(file)]) == 0
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert main(["train", str(file)]) == 0


def test_the_home_folder_stays_as_it_is(tmp_path, server, image_files, monkeypatch):
    """Without WANDB_DATA_DIR and WANDB_CACHE_DIR: what waits for its upload, and W&B's copies, are the run's."""
    monkeypatch.delenv("WANDB_CACHE_DIR")
    home = tmp_path / "home"
    config = run_config(tmp_path, wandb_responses=3)
    live(config, range(1, 3), image_files)
    assert list((config.folder / "wandb" / "data").iterdir())
    assert main(["sync", str(config.folder)]) == 0
    all_arrived(server)
    left = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    assert [path for path in left if not path.startswith(("config/", ".cache/wandb/logs/"))] == []


@pytest.fixture
def finished(tmp_path, server):
    """A run of made-up numbers that W&B has."""
    folder = write_run(tmp_path / "runs" / "made-up", stages=(2, 2), queries=4, held_out=6)
    atomic_write_text(folder / "wandb_id", "0123456789abcdef")
    server.on_UpsertBucket({"name": "0123456789abcdef", "project": "rethinker"})
    return folder


def panels(report: dict) -> list[dict]:
    blocks = json.loads(report["spec"])["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    return [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]


def test_a_report_arrives(server, finished, capsys):
    assert main(["report", str(finished), "--wandb"]) == 0
    assert "W&B report (draft): " + server.url in capsys.readouterr().out
    assert main(["report", str(finished), "--wandb", "--publish"]) == 0
    draft, published = server.reports
    assert (draft["type"], published["type"]) == ("runs/draft", "runs") and server.unknown == []
    text = json.dumps(draft)
    assert draft["displayName"] == "Rethinker: made-up" and KEY not in text
    shown = [metric for panel in panels(draft) for metric in panel["config"].get("metrics", ())]
    for metric in ("queries/effective", "validation/accuracy", "advantages/after", "evaluation/start/plain/pass@1"):
        assert metric in shown, metric
    assert "0123456789abcdef" in text and "Paired by query" in text
    no_key_under(finished.parent)


def test_runs_without_data_do_not_stop_the_report_of_a_folder(server, finished, capsys):
    """One has not begun, one was not recorded for W&B."""
    runs = finished.parent
    begun, bare = runs / "begun", write_run(runs / "bare", stages=(1,), queries=3, held_out=4)
    atomic_write_text(begun / "config.yaml", "name: begun\n")
    assert main(["report", str(runs)]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["written:", str(bare), "written:", str(finished)]
    assert said.err == f"skipped: {begun}: no episode has ended yet (no metrics.jsonl)\n"
    assert main(["report", str(runs), "--wandb"]) == 0
    assert f"skipped: {bare}: nothing for a W&B report" in capsys.readouterr().err
    assert server.reports[0]["displayName"] == "Rethinker: made-up"
    assert main(["report", str(runs), str(begun)]) == 2
    assert f"{begun} is not the folder of a run (no metrics.jsonl)" in capsys.readouterr().err


def test_a_run_that_is_not_on_the_server(server, finished, capsys):
    server.runs.clear()
    assert main(["report", str(finished), "--wandb"]) == 2
    assert f"`rethinker sync {finished}`" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["sync"], ["report", "--wandb"]])
def test_without_key_or_network(home, finished_offline, monkeypatch, capsys, command):
    with serve("another key") as other:
        monkeypatch.setenv("WANDB_BASE_URL", other.url)
        assert main([*command, str(finished_offline)]) == 2
        assert "refuses the key" in capsys.readouterr().err and not other.runs
        wandb.teardown()
    with socket.socket() as closed:  # bound, not listening
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert main([*command, str(finished_offline)]) == 2
        assert "cannot be reached" in capsys.readouterr().err
        wandb.teardown()
        monkeypatch.delenv("WANDB_API_KEY")
        assert main([*command, str(finished_offline)]) == 2
        assert "no W&B key" in capsys.readouterr().err


@pytest.fixture
def finished_offline(tmp_path):
    """A run with something to send, which is never read."""
    folder = write_run(tmp_path / "runs" / "made-up", stages=(1,), queries=3, held_out=4)
    atomic_write_text(folder / "wandb_id", "0123456789abcdef")
    atomic_write_text(folder / "wandb" / "offline-run-20260101_000000-0123456789abcdef" / "run.wandb", "")
    return folder


def test_mistakes(tmp_path, finished_offline, capsys):
    assert main(["sync", "nowhere"]) == 2
    assert "nowhere is not the folder of a run" in capsys.readouterr().err
    other = write_run(tmp_path / "other", stages=(1,), queries=3, held_out=4)
    assert main(["sync", str(other)]) == 2
    assert "train with tracking.wandb=true" in capsys.readouterr().err
    assert main(["report", str(other), "--wandb"]) == 2
    assert "was not recorded for W&B" in capsys.readouterr().err
    assert main(["report", str(other), "--publish"]) == 2
    assert "add --wandb" in capsys.readouterr().err
    atomic_write_text(other / "wandb_id", "00")
    atomic_write_text(other / "config.yaml", "tracking: {wandb_project: mine}\n")
    assert main(["report", str(other), str(finished_offline), "--wandb"]) == 2
    assert "the runs have mine, rethinker" in capsys.readouterr().err


def test_blocks_of_a_report(tmp_path):
    """One run set a group, filtered by ids; Figs 2, 5, 6, 7 have their panels; the words are the run's."""
    runs = []
    for number, group in enumerate(("ssr", "ssr", "grpo")):
        run = write_run(tmp_path / f"run-{number}", stages=(2, 2), queries=4, held_out=6, seed=number)
        atomic_write_text(
            run / "config.yaml", f"name: run-{number}\nseed: {number}\ntracking: {{wandb_group: {group}}}\n"
        )
        atomic_write_text(run / "wandb_id", f"id{number}")
        runs.append(run)
    blocks = report_blocks(runs, entity="e", project="p")
    grids = [block for block in blocks if type(block).__name__ == "PanelGrid"]
    for grid in grids:
        assert [(found.name, found.groupby) for found in grid.runsets] == [("ssr", ["group"]), ("grpo", [])]
        assert grid.runsets[0].filters == "Metric('ID') in ['id0', 'id1']"
    plots = {panel.title: panel for grid in grids for panel in grid.panels if hasattr(panel, "title")}
    assert plots["Queries by their first responses"].y[0] == "queries/effective"
    assert plots["Validation, greedy"].x == "episode"
    assert plots["Advantages, after"].y == ["advantages/after"]
    shares = ["replay/effective_before", "replay/effective_after"]  # with a price unanimous groups do not count in them
    assert [title for title, panel in plots.items() if getattr(panel, "y", None) == shares] == [
        "Share whose advantage, by correctness, is not zero"
    ]
    assert "evaluation/start/forced/pass@1" in plots["Held-out accuracy"].metrics
    words = "\n".join(block.text for block in blocks if type(block).__name__ == "MarkdownBlock")
    assert "**run-2**: 4 episodes" in words and "| start | plain |" in words
    (lists,) = (block for block in blocks if type(block).__name__ == "UnorderedList")
    assert "ssr: 2 runs, seeds 0, 1. Intervals are over held-out queries, not over seeds." in lists.items


def test_every_metric_has_the_axis_of_its_record():
    found = axes()
    assert found["responses"] == "episode"
    for record, names in RECORDS.items():
        for name in names:
            assert found[f"{name.partition('/')[0]}/*"] == ("step" if record == "step" else "episode"), name


def test_whole_groups():
    rows = [{"qid": qid, "index": index} for qid, index in (("a", 0), ("b", 0), ("a", 1), ("b", 1))]
    assert [(item["qid"], item["index"]) for item in whole_groups(rows, 3)] == [("a", 0), ("a", 1), ("b", 0)]
    assert whole_groups(rows, 0) == []


def test_names():
    numbers = evaluation_numbers("stage.1", {"modes": {"bound": {"greedy": ESTIMATE, "outcomes": {"sampled": {}}}}})
    assert numbers == {f"evaluation/stage_1/bound/greedy{end}": ESTIMATE[name] for name, end in ENDS}
    assert artifact_name("data", "data/a b.parquet") == "data-data-a-b.parquet"
    assert len(artifact_name("data", "x" * 500)) <= 128


ENDS = (("value", ""), ("low", "_low"), ("high", "_high"))


@pytest.mark.parametrize("key", ["wandb_group=a", "wandb_responses=3", "wandb_checkpoints=true", "wandb_tags=[a]"])
def test_a_stage_cannot_set_them(key):
    name, value = key.split("=")
    with pytest.raises(ConfigError, match=f"'tracking.{name}' is for the whole run"):
        load_config(None, [f"stages=[{{name: a, overrides: {{tracking: {{{name}: {value}}}}}}}]"])
