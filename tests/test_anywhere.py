"""Commands typed in other folders: where paths start, the checks before a run starts, how its failures look."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rethinker import cli
from rethinker.config import RunConfig, load_config, to_dict, to_yaml
from rethinker.config.schema import ConfigError
from rethinker.lab.ablation.grid import load_grid
from rethinker.lab.jobs import __main__ as processes
from rethinker.lab.jobs import failures, foreground, preflight
from rethinker.rundir.folder import RunExists, check_folder
from rethinker.rundir.paths import RunDir
from rethinker.rundir.provenance import data_digests

ROOT = Path(__file__).parents[1]
TINY = ROOT / "experiments" / "tiny.yaml"
MODEL, SAMPLE = ROOT / "data" / "tiny-vlm", ROOT / "data" / "visual_math" / "test.parquet"
# The shipped run of two episodes, with the model and the training data that it names itself.
CUT_DOWN = (
    "queries_per_episode=4",
    "rollout.group_size=4",
    "rollout.engine=transformers",
    "rollout.max_new_tokens=48",
    "optim.train_batch_size=16",
    "data.train_limit=16",
    "data.validation=null",
    "data.test=null",
    "launch.processes=1",
    "stages.0.episodes=1",
    "stages.1.episodes=1",
    "stages.2.episodes=1",
)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty working directory outside the repository."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def rethinker(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rethinker.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)


# -- what relative paths mean -----------------------------------------------------------------------------------------


def test_a_shipped_config_is_relative_to_the_repository(elsewhere):
    config = load_config(TINY)
    assert Path(config.model.path) == MODEL and Path(config.data.train).is_relative_to(ROOT / "data" / "generated")
    assert config.folder == Path("runs/tiny")  # results belong to the working directory
    assert config.for_stage(1).model.path == config.model.path
    assert load_config(ROOT / "experiments" / "vl_rethinker_7b.yaml").model.path == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_every_shipped_config_is_relative_to_the_repository():
    results = ROOT / "experiments" / "results"  # the configs of runs that were made: records, not to be started
    for path in (path for path in (ROOT / "experiments").rglob("*.yaml") if results not in path.parents):
        values = yaml.safe_load(path.read_text())
        if "base" in values or "model" in values:
            assert values["relative_to"] == "repository", path


def test_a_config_of_ones_own_is_relative_to_the_working_directory(elsewhere):
    (elsewhere / "deep").mkdir()
    (elsewhere / "deep" / "mine.yaml").write_text("{model: {path: model}, data: {train: a.parquet}}")
    config = load_config("deep/mine.yaml", typed=["data.test=b.parquet"])
    assert (config.model.path, config.data.train, config.data.test) == ("model", "a.parquet", "b.parquet")


def test_what_is_typed_is_relative_to_the_working_directory(elsewhere):
    typed = [
        "data.test=b/c.parquet",
        "data.validation=owner/name:test",
        "launch.accelerate=x.yaml",
        "data.train=d:train",
    ]
    config = load_config(TINY, typed=typed)
    assert config.data.test == f"{elsewhere}/b/c.parquet" and config.data.train == f"{elsewhere}/d:train"
    assert config.data.validation == "owner/name:test"  # on the hub, until there is such a folder
    assert config.launch.accelerate == f"{elsewhere}/x.yaml"
    (elsewhere / "owner" / "name").mkdir(parents=True)
    assert load_config(TINY, typed=typed).data.validation == f"{elsewhere}/owner/name:test"
    as_lines = load_config(TINY, ["data.test=data/visual_math/test.parquet", "launch.accelerate=null"])
    assert as_lines.data.test == str(SAMPLE) and as_lines.launch.accelerate is None


def test_files_hold_no_path_of_the_machine(elsewhere):
    config = load_config(TINY, ["data.test=data/visual_math/test.parquet"])
    (elsewhere / "config.yaml").write_text(to_yaml(config))
    assert str(ROOT) not in to_yaml(config) and to_dict(config)["model"]["path"] == "data/tiny-vlm"
    assert load_config(elsewhere / "config.yaml") == config
    assert data_digests(config)["test"]["path"] == "data/visual_math/test.parquet"
    assert data_digests(config)["test"]["sha256"] == data_digests(RunConfig(data=config.data))["test"]["sha256"]


def test_a_run_is_the_same_from_everywhere(elsewhere, tmp_path, monkeypatch):
    """One that was made in the repository, by an older version too, and resumed elsewhere."""
    runs = tmp_path / "runs"
    (runs / "tiny" / "rollouts").mkdir(parents=True)
    (runs / "tiny" / "rollouts" / "episode-00001.parquet").touch()
    monkeypatch.chdir(ROOT)
    saved = to_yaml(load_config(TINY))
    monkeypatch.chdir(elsewhere)
    for text in (saved, saved.replace("relative_to: repository\n", "")):
        (runs / "tiny" / "config.yaml").write_text(text)
        check_folder(load_config(TINY, [f"runs_dir={runs}"]), resume=True)
        with pytest.raises(RunExists, match=r"data\.train: data/generated/.* -> .*/mine\.parquet"):
            check_folder(load_config(TINY, [f"runs_dir={runs}"], ["data.train=mine.parquet"]), resume=True)
    assert Path(load_config(runs / "tiny" / "config.yaml", ["relative_to=repository"]).model.path) == MODEL


def test_grids(elsewhere):
    grid = load_grid(ROOT / "experiments" / "ablations" / "smoke.yaml", ["data.validation=mine.parquet"])
    assert {run.config.model.path for run in grid.runs} == {str(MODEL)}
    assert {run.config.data.test for run in grid.runs} == {str(SAMPLE)}
    assert {run.config.data.validation for run in grid.runs} == {f"{elsewhere}/mine.parquet"}
    assert grid.folder == Path("runs/smoke")
    own = f"{{base: {TINY}, axes: {{a: {{b: [data.train=mine.parquet]}}}}, common: [data.test=c.parquet]}}"
    (elsewhere / "own.yaml").write_text(own)
    (run,) = load_grid("own.yaml").runs
    assert run.config.data.train == f"{elsewhere}/mine.parquet" and run.config.data.test == f"{elsewhere}/c.parquet"


# -- the checks before a run starts ----------------------------------------------------------------------------------


def problem(*settings: str) -> str:
    config = load_config(None, [f"model.path={MODEL}", f"data.train={SAMPLE}", *settings])
    with pytest.raises(ConfigError) as caught:
        preflight.preflight(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_model(elsewhere):
    assert problem("model.path=my/deep/model").startswith(
        f"model.path=my/deep/model: no folder {elsewhere}/my/deep/model;"
    )
    hub = problem("model.path=owner/model")
    assert f"no folder {elsewhere}/owner/model, so it was taken for a model on the Hugging Face hub" in hub
    assert "not in this machine's cache" in hub
    ours = problem("model.path=data/tiny-vlm")  # no name on the hub: the repository has it
    assert f"the repository has {MODEL}: set relative_to=repository" in ours and "hub:" not in ours
    (elsewhere / "file").touch()
    assert "is a file; give the folder of a checkpoint" in problem("model.path=file")


def test_an_engine_over_several_gpus_in_several_processes(elsewhere):
    """Found before anything is loaded; servers, a single process and the transformers engine have none in each."""
    settings = ("rollout.tensor_parallel_size=4", "rollout.engine=vllm", "launch.processes=8")
    found = problem("model.path=no/model/at/all", *settings)
    assert "rollout.tensor_parallel_size=4 in 8 processes" in found and "rollout.engine=server" in found
    file = ROOT / "experiments" / "accelerate" / "gpus-8.yaml"
    assert "in 8 processes" in problem(*settings[:2], f"launch.accelerate={file}")
    for change in ("launch.processes=1", "rollout.engine=server", "rollout.engine=transformers"):
        preflight.check_engine(load_config(None, [*settings, change]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
        ("processor_config.json", "has no processor_config.json"),
    ],
)
def test_half_a_model(elsewhere, name, text):
    shutil.copytree(MODEL, "model")
    (elsewhere / "model" / name).unlink()
    assert text in problem("model.path=model")


def test_a_model_whose_download_was_cut_short(elsewhere):
    shutil.copytree(MODEL, "model")
    (elsewhere / "model" / "model.safetensors.index.json").write_text('{"weight_map": {"x": "part-2.safetensors"}}')
    assert "model.safetensors.index.json names part-2.safetensors, which is missing" in problem("model.path=model")


def test_a_run_is_no_model(elsewhere):
    shutil.copytree(MODEL, "run/checkpoints/last/model")
    assert "did you mean run/checkpoints/last/model?" in problem("model.path=run")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("no/such/file.parquet", "no file or folder {here}/no/such/file.parquet; give a parquet or JSON lines file"),
        ("data/one.parquet", "no file or folder {here}/data/one.parquet; give"),  # not owner/name
        ("owner/name", "no file or folder {here}/owner/name, so it was taken for a data set on the Hugging Face hub"),
        ("data/visual_math", f"the repository has {SAMPLE.parent}: set relative_to=repository"),
        ("broken.parquet", "broken.parquet"),
        ("text.csv", "can read .parquet and .jsonl files"),
        (f"{SAMPLE}:test", "is a file, which has no splits"),
        (f"{SAMPLE.parent}:train", "split 'train' names 0 files; the folder has test.parquet"),
    ],
)
def test_missing_data(elsewhere, source, text):
    (elsewhere / "broken.parquet").write_bytes(b"PAR1 no more")
    (elsewhere / "text.csv").touch()
    found = problem(f"data.validation={source}")
    assert found.startswith(f"data.validation={source}: ") and text.format(here=elsewhere) in found


def test_generated_data_may_be_missing(monkeypatch, tmp_path):
    """They are drawn; in the repository only."""
    monkeypatch.setattr(preflight, "find_repository", lambda: tmp_path)
    missing = tmp_path / "data" / "generated" / "world"
    config = load_config(None, [f"model.path={MODEL}", f"data.train={missing}/train.parquet", f"runs_dir={tmp_path}"])
    assert preflight.preflight(config) == [] and preflight.missing_generated([config]) == [missing]
    monkeypatch.setattr(preflight, "find_repository", lambda: None)
    assert preflight.missing_generated([config]) == []
    with pytest.raises(ConfigError, match="no file or folder"):
        preflight.preflight(config)


def test_other_missing_data_is_not_replaced_by_visual_math(monkeypatch, tmp_path):
    """Only the files that make_data writes; sums in data/generated/real, say, are somebody else's to make."""
    monkeypatch.setattr(preflight, "find_repository", lambda: tmp_path)
    missing = tmp_path / "data" / "generated" / "real"
    config = load_config(None, [f"model.path={MODEL}", f"data.train={missing}/train.jsonl", f"runs_dir={tmp_path}"])
    assert preflight.missing_generated([config]) == []
    with pytest.raises(ConfigError, match=r"no file or folder .*train\.jsonl"):
        preflight.preflight(config)


def test_a_full_disk(elsewhere, monkeypatch):
    free = 10 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))
    assert problem().startswith(f"runs_dir=runs: 10 MiB free on the disk of {elsewhere}, a run needs at least 200 MiB")
    free = preflight.LEAST_FREE + 1
    (warning,) = preflight.preflight(load_config(None, [f"model.path={MODEL}", f"data.train={SAMPLE}"]))
    assert "the checkpoints of this run may take" in warning and "runs_dir=..." in warning


def test_the_disk_for_a_model_of_the_hub(elsewhere, monkeypatch):
    """7B, all weights: four checkpoints (the two newest, the best one, one being written) of weights and moments in
    float32. What a run has saved already needs no more room."""
    settings = ["model.path=Qwen/Qwen2.5-VL-7B-Instruct", "name=large"]
    config = load_config(None, settings)
    size = preflight.checkpoint_bytes(config, None)
    assert size == 12 * 8_292_166_656
    adapters = load_config(None, [*settings, "model.dtype=bfloat16", "model.lora_rank=64"])
    assert preflight.checkpoint_bytes(adapters, None) == 2 * 8_292_166_656 + 16 * 28 * 64 * 90_112
    unknown = load_config(None, ["model.path=someone/other"])
    assert preflight.checkpoint_bytes(unknown, None) == 0 and preflight.checkpoint_bytes(unknown, 5) == 15
    free = 4 * size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))
    (warning,) = preflight.check_disk(config, size)
    assert "may take 370.9 GiB more" in warning
    saved = elsewhere / "runs" / "large" / "checkpoints" / "step-000016" / "model"
    saved.mkdir(parents=True)
    with (saved / "model.safetensors").open("wb") as file:
        file.truncate(size)  # a hole: it takes no room
    assert not list(preflight.check_disk(config, size))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["train", TINY, "model.path=my/deep/model"],
            "train: model.path={here}/my/deep/model: no folder {here}/my/deep/model",
        ),
        (["train", TINY, "data.test=mine.parquet"], "train: data.test={here}/mine.parquet: no file or folder"),
        (["train", TINY, "launch.accelerate=a.yaml"], "train: launch.accelerate='{here}/a.yaml': "),
        (["launch", TINY, "model.path=my/deep/model"], "launch: model.path={here}/my/deep/model: no folder"),
        (["evaluate", TINY, "model.path=my/deep/model"], "evaluate: model.path={here}/my/deep/model: no folder"),
    ],
    ids=lambda value: "-".join(map(str, value[::2])) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_nothing_is_started(elsewhere, arguments, text):
    done = rethinker(*arguments, folder=elsewhere)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("rethinker " + text.format(here=elsewhere)), done.stderr
    assert not list(elsewhere.iterdir())


# -- how failures look ------------------------------------------------------------------------------------------------


class Failure:
    """One of torchrun's records, as far as it is looked at."""

    def __init__(self, exitcode: int, timestamp: int) -> None:
        self.exitcode, self.timestamp = exitcode, timestamp


@pytest.mark.parametrize(
    ("exits", "told"),
    [
        ({1: Failure(-9, 100), 0: Failure(1, 100)}, "rank 1 was killed by SIGKILL (usually the kernel's"),
        ({0: Failure(1, 100), 1: Failure(-15, 100)}, "rank 0: ValueError: why"),  # torchrun ends the others
        ({0: Failure(1, 100), 1: Failure(-9, 131)}, "rank 0: ValueError: why"),
        ({0: Failure(-11, 100)}, "rank 0 was killed by SIGSEGV"),
    ],
    ids=["memory", "exception", "exception-and-a-deaf-rank", "crash"],
)
def test_the_cause_is_told_from_its_consequences(tmp_path, monkeypatch, exits, told):
    """Among several entries: a rank that lost its peer or was ended by torchrun is not why the run failed."""
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    errors = RunDir(tmp_path).errors
    errors.write_text(
        "== 2026-01-01T00:00:00 rank 0: ValueError: why\nTraceback\n== 2026-01-01T00:00:01 rank 1: no peer\n"
    )
    monkeypatch.setenv(failures.ERRORS_VARIABLE, str(errors))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def fail() -> None:
        error = ChildFailedError.__new__(ChildFailedError)
        error.failures = exits
        raise error

    monkeypatch.setattr(launch, "main", fail)
    with pytest.raises(SystemExit) as ended:
        processes.launch()
    found = failures.first_failure(tmp_path)
    assert ended.value.code == 1 and found is not None and found.startswith(told)


def test_an_exception_is_noted_and_shown_where_it_must_be(tmp_path):
    """On demand; and if there is no place for it: the run's folder is gone, or the run was started otherwise."""
    code = "from rethinker.lab.jobs import failures\nfailures.note_exceptions('rank 3')\n"
    code += "raise ValueError('a\\nb ' + 900 * 'x')"
    noted = {failures.ERRORS_VARIABLE: str(tmp_path / "errors.log")}
    gone = {failures.ERRORS_VARIABLE: str(tmp_path / "gone" / "errors.log")}
    for given, shown in (({}, 1), (gone, 1), (noted, 0), (noted | {failures.TRACEBACK_VARIABLE: "1"}, 1)):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | given, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("Traceback (most recent call last)") == shown
    assert re.fullmatch(r"rank 3: ValueError: a b x{500,600} \.\.\.", failures.first_failure(tmp_path) or "")
    assert (tmp_path / "errors.log").read_text().count("Traceback (most recent call last)") == 2
    assert failures.first_failure(tmp_path / "gone") is None


def test_an_exception_goes_with_a_folder_that_is_moved_and_is_shown_too(tmp_path):
    (tmp_path / "run").mkdir()
    code = "import os\nfrom rethinker.lab.jobs import failures\nfailures.note_exceptions('rank 0')\n"
    code += f"os.rename({os.fspath(tmp_path / 'run')!r}, {os.fspath(tmp_path / 'moved')!r})\nraise ValueError('why')"
    noted = {failures.ERRORS_VARIABLE: str(tmp_path / "run" / "errors.log")}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | noted, capture_output=True, text=True)
    assert done.returncode == 1 and "ValueError: why" in done.stderr
    assert failures.first_failure(tmp_path / "moved") == "rank 0: ValueError: why"


TOO_MANY = ("queries_per_episode=100000", "rollout.engine=transformers", "data.validation=null", "data.test=null")


@pytest.mark.slow
def test_a_rank_that_raises_is_one_line(elsewhere):
    done = rethinker("train", TINY, *TOO_MANY, "launch.processes=2", folder=elsewhere)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("rethinker train: ")]
    assert re.match(r"rethinker train: rank [01]: ValueError: queries_per_episode=100000, but /.* has 4000", line)
    assert "; details: runs/tiny/errors.log; " in line and line.endswith(" --resume")
    assert done.stderr.count("usable queries") == 1
    assert "Traceback (most recent call last)" in (elsewhere / "runs" / "tiny" / "errors.log").read_text()
    jobs = rethinker("jobs", folder=elsewhere).stdout
    assert "tiny  failed, episode 0/130" in jobs and "ValueError: queries_per_episode=100000" in jobs


@pytest.mark.parametrize("words", [["--traceback", "train"], ["train", "--traceback"]], ids=" ".join)
def test_tracebacks_on_demand(elsewhere, monkeypatch, words):
    """The processes of the run are told, from both places of the option."""
    told = f"import os; print({failures.TRACEBACK_VARIABLE!r} in os.environ, file=open('told', 'w')); exit(3)"
    monkeypatch.setattr(foreground, "launch_command", lambda *_, **__: [sys.executable, "-c", told])
    settings = [f"model.path={MODEL}", f"data.train={SAMPLE}", "data.validation=null", "data.test=null"]
    assert cli.main([*words, str(TINY), *settings]) == 3 and (elsewhere / "told").read_text() == "True\n"
    assert cli.main(["train", str(TINY), *settings, "--resume"]) == 3 and (elsewhere / "told").read_text() == "False\n"


@pytest.mark.slow
def test_a_rank_that_is_killed(elsewhere):
    settings = [*CUT_DOWN, "stages.0.episodes=100000"]
    command = [sys.executable, "-m", "rethinker.cli", "train", str(TINY), *settings]
    with subprocess.Popen(command, cwd=elsewhere, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        deadline = time.monotonic() + 200
        while not (elsewhere / "runs" / "tiny" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            assert run.poll() is None
            time.sleep(0.2)
        os.kill(int((elsewhere / "runs" / "tiny" / "job" / "writer").read_text()), signal.SIGKILL)
        _, said = run.communicate()
    assert run.returncode == 1 and "Traceback" not in said
    assert "rethinker train: rank 0 was killed by SIGKILL (usually the kernel's, when memory runs out" in said


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_a_run_from_another_folder_and_its_resume_from_a_third(tmp_path, elsewhere, monkeypatch):
    done = rethinker("train", TINY, *CUT_DOWN, folder=elsewhere)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in elsewhere.iterdir()] == ["runs"]  # no data next to it
    run = elsewhere / "runs" / "tiny"
    assert (run / "report.html").is_file() and not (run / "errors.log").exists()
    for name in ("config.yaml", "provenance.json", "job/config.yaml"):
        assert str(ROOT) not in (run / name).read_text(), name
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["data"]["train"]["path"] == "data/generated/visual_math/train.parquet"
    assert provenance["data"]["train"]["sha256"]

    (run / "status.json").write_text('{"state": "stopped"}')  # as if it had been stopped after its last episode
    third = tmp_path / "third"
    third.mkdir()
    moved = run.parent.rename(tmp_path / "moved")
    settings = [*CUT_DOWN, f"runs_dir={moved}", "stages.2.episodes=2"]
    done = rethinker("train", TINY, *settings, "--resume", folder=third)
    assert done.returncode == 0, done.stderr
    assert not list(third.iterdir())
    lines = [json.loads(line) for line in (moved / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in lines if line["record"] == "episode"] == [1, 2, 3, 4]
    monkeypatch.chdir(third)
    assert Path(load_config(moved / "tiny" / "config.yaml").model.path) == MODEL
