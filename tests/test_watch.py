"""Following a run's files, and the two views of it: the terminal's and the notebook's."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from IPython.display import HTML, Image
from rich.console import Console
from synthetic_run import write_run

from rethinker import cli
from rethinker.lab.jobs import Job, JobStatus
from rethinker.lab.notebook import live
from rethinker.lab.watch import terminal as watch
from rethinker.lab.watch.snapshot import Snapshot, snapshot
from rethinker.lab.watch.terminal import sparkline
from rethinker.rundir import locks
from rethinker.rundir.atomic import append_json_line, atomic_write_text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of six and eight episodes; not to be written to."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "run")
    (folder / "status.json").write_text('{"state": "finished"}')
    return folder


def line(folder: Path, episode: int, record: str = "episode", **metrics) -> None:
    place = {"record": record, "stage": "a", "episode": episode, "step": 2 * episode, "seconds": 10.0 * episode}
    append_json_line(folder / "metrics.jsonl", place | metrics)


def read(folder: Path) -> Snapshot:
    if not (folder / "config.yaml").exists():
        atomic_write_text(folder / "config.yaml", "stages: [{name: a, episodes: 5}]\n")
    return snapshot(Job(folder))


def numbers(run: Snapshot) -> list[int]:
    return run.metrics.episodes["episode"].tolist()


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_the_run_as_it_is(tmp_path):
    now = read(tmp_path)
    assert numbers(now) == [] == now.responses(3) and now.rollouts is None and now.findings == []
    assert now.headline == "episode 0/5  step 0  0:00" and now.seconds_left is None
    for episode in (1, 2, 3):
        line(tmp_path, episode, "step")
        line(tmp_path, episode)
        now = read(tmp_path)
        assert numbers(now) == list(range(1, episode + 1)) and len(now.metrics.steps) == episode
    assert now.headline == "a  episode 3/5  step 6  0:30" and len(now.metrics.validations) == 0


def test_a_half_written_line_waits(tmp_path):
    line(tmp_path, 1)
    whole = json.dumps({"record": "episode", "episode": 2, "step": 4, "stage": "ä", "seconds": 1.0}, ensure_ascii=False)
    data = (whole + "\n").encode()
    start = (tmp_path / "metrics.jsonl").stat().st_size
    for cut in (5, data.index("ä".encode()) + 1, len(data)):  # the second cut is inside the letter
        with (tmp_path / "metrics.jsonl").open("rb+") as file:
            file.truncate(start)
            file.seek(start)
            file.write(data[:cut])
        assert numbers(read(tmp_path)) == ([1, 2] if cut == len(data) else [1])
    assert read(tmp_path).metrics.episodes["stage"].tolist() == ["a", "ä"]


def rewrite(folder: Path, episodes: list[int], **metrics) -> None:
    """As Tracker.truncate_after does: a new file in the old one's place."""
    rows = [{"record": "episode", "stage": "a", "episode": e, "step": e, "seconds": 1.0} | metrics for e in episodes]
    atomic_write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_a_resume_is_noticed(tmp_path):
    for episode in (1, 2, 3, 4):
        line(tmp_path, episode)
    assert numbers(read(tmp_path)) == [1, 2, 3, 4]
    rewrite(tmp_path, [1, 2])
    assert numbers(read(tmp_path)) == [1, 2]
    rewrite(tmp_path, [1, 2, 3, 4, 5, 6, 7], note="x" * 100)
    assert numbers(read(tmp_path)) == [1, 2, 3, 4, 5, 6, 7]
    (tmp_path / "metrics.jsonl").unlink()
    assert numbers(read(tmp_path)) == []


def test_a_broken_line_is_an_error(tmp_path):
    for broken in ("{]", "[1]", '{"record": "other"}'):
        (tmp_path / "metrics.jsonl").write_text(broken + "\n")
        line(tmp_path, 1)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not (valid JSON|a record of a run)"):
            read(tmp_path)


def test_time_left(tmp_path):
    assert read(tmp_path).seconds_left is None
    for episode in (1, 2, 3):
        line(tmp_path, episode)
    now = read(tmp_path)
    assert now.seconds_left == 20.0
    stages = "[{name: a, episodes: 9, overrides: {budget: {steps: 8}}}, {name: b, episodes: 7}]"
    atomic_write_text(tmp_path / "config.yaml", f"stages: {stages}\nbudget: {{steps: 12}}\n")
    assert now.seconds_left == 30.0  # an episode of two steps, then two


BAD = {
    "replay/batch_fill": 0.0,
    "replay/effective_before": 0.0,
    "replay/skipped_steps": 2,
    "queries/all_incorrect": 1.0,
    "rollout/responses": 64,
    "grader/no_answer": 60,
}


def test_what_is_wrong_is_shown_while_it_is(tmp_path, page):
    """By the newest ten episodes, in both views, and within a low terminal."""
    for episode in (1, 2, 3):
        line(tmp_path, episode, **BAD)
    (found,) = read(tmp_path).findings
    assert found.text.startswith("nothing learned in episodes 1 to 3: 24 of 24 groups are unanimous")
    text = printed(tmp_path)
    assert "nothing learned in episodes 1 to 3" in text and "- 180 of 192 responses have no \\boxed{} answer" in text
    live.watch(tmp_path)
    head = page.outputs[0][-1].data
    assert "nothing learned in episodes 1 to 3" in head and "<li>180 of 192 responses have no \\boxed{} answer" in head
    console = Console(width=80, height=14, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    assert len(console.render_lines(watch.view(read(tmp_path), 3, console, fit=True))) <= 14
    for episode in range(4, 14):
        line(tmp_path, episode, **{"replay/effective_before": 0.5})
    assert read(tmp_path).findings == [] and "nothing learned" not in printed(tmp_path)


def test_responses_of_the_newest_episode(run):
    now = read(run)
    assert now.rollouts is not None and now.rollouts[0] == 14
    shown = now.responses(5)
    assert len({response.qid for response in shown}) == 5 and shown == now.responses(5)
    assert all("<image>" not in response.question and response.images for response in shown)
    assert len(now.responses(99)) == 24 and now.responses(0) == []


def test_a_forced_trajectory_goes_first(run, tmp_path):
    (tmp_path / "rollouts").mkdir()
    for number in (8, 9):
        name = f"rollouts/episode-{number:05d}.parquet"
        (tmp_path / name).write_bytes((run / name).read_bytes())
    table = pd.read_parquet(tmp_path / "rollouts" / "episode-00009.parquet")
    queries = table["qid"].unique()
    forced, kept = (set(table["qid"][rows]) for rows in (table["pass"] == "forced", table["kept"].astype(bool)))
    line(tmp_path, 9)
    shown = read(tmp_path).responses(len(queries))
    assert [response.qid for response in shown] == list(queries)
    assert {response.qid for response in shown if response.second is not None} == forced and kept
    assert all(response.correct for response in shown if response.qid in kept)
    assert all(response.first and response.second for response in shown if response.qid in forced)


def test_responses_are_never_ahead_of_the_metrics(run, tmp_path):
    """An episode that ends between the two readings of a look is shown by the next one, whole."""
    (tmp_path / "rollouts").mkdir()
    for number in (8, 9):
        name = f"rollouts/episode-{number:05d}.parquet"
        (tmp_path / name).write_bytes((run / name).read_bytes())
    for episode in (8, 9):
        line(tmp_path, episode)
        now = read(tmp_path)
        assert now.rollouts is not None and now.rollouts[0] == episode


@pytest.mark.parametrize(
    ("values", "width", "top", "bars"),
    [
        ([0.0, 0.5, 1.0], 10, 1.0, "▁▅█"),
        ([0, 1, 2, 4], 10, None, "▁▃▅█"),
        ([0.0, 0.0, 1.0, 1.0], 2, 1.0, "▁█"),
        ([None, 1.0], 10, 1.0, " █"),
        ([0.0, 0.0], 10, None, "▁▁"),
        ([], 10, None, ""),
        ([2.0, -1.0], 10, 1.0, "█▁"),
    ],
)
def test_sparklines(values, width, top, bars):
    assert sparkline(values, width, top) == bars


# -- the terminal -----------------------------------------------------------------------------------------------------


def printed(run: Path, **options) -> str:
    console = Console(width=110, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    watch.follow(run, console=console, **options)
    return console.export_text()


def test_the_terminal_shows_a_finished_run(run):
    text = printed(run, responses=2)
    assert "run  finished  rethinker  episode 14/1  step 56" in text and " left" not in text
    for _, label, _ in watch.SHOWN:
        assert label in text
    assert (
        f"validation, greedy ({len(read(run).metrics.validations)})" in text
        and "episodes 1 to 14" in text
        and "▁" in text
    )
    assert text.count("(gold ") == 2 and "[train-" in text
    assert all(len(row) <= 110 for row in text.splitlines())


@pytest.mark.parametrize(("height", "shown"), [(60, 3), (26, 2), (12, 0)])
def test_a_look_fits_into_the_terminal(run, monkeypatch, height, shown):
    """Responses of 2,000 words lose their middles, and a low terminal shows fewer of them."""
    response = read(run).responses(1)[0]
    long = replace(response, first="Once " + "word " * 2000 + "then", second="Wait " + "again " * 2000 + "so 7.")
    monkeypatch.setattr(Snapshot, "responses", lambda self, n: [long] * n)
    console = Console(width=80, height=height, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    assert len(console.render_lines(watch.view(read(run), 3, console))) > 600
    view = watch.view(read(run), 3, console, fit=True)
    assert len(console.render_lines(view)) <= height
    console.print(view)
    text = console.export_text()
    assert text.count("Once word") == text.count("again so 7.") == text.count(" lines …") == shown


def test_a_run_that_lacks_a_metric_is_shown_without_it(tmp_path, page):
    """Of another version."""
    atomic_write_text(tmp_path / "config.yaml", "stages: [{name: a, episodes: 3}]\n")
    for episode in (1, 2):
        line(tmp_path, episode, **{"accuracy/first": 0.5})
        line(tmp_path, episode, "validation")
    assert live.watch(tmp_path).episode == 2 and isinstance(page.outputs[1][-1], Image)
    assert "accuracy of first responses" in printed(tmp_path)


def test_the_terminal_follows_a_run_to_its_end(tmp_path):
    """The run is this test: a lock that is held, lines that come."""
    folder = tmp_path / "run"
    atomic_write_text(folder / "config.yaml", "stages: [{name: a, episodes: 3}]\n")
    atomic_write_text(folder / "status.json", '{"state": "running"}')
    lock = locks.take(folder / "job/lock")
    assert lock is not None
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    found: list[JobStatus] = []
    thread = threading.Thread(target=lambda: found.append(watch.follow(folder, every=0.05, console=console)))
    thread.start()
    for episode in (1, 2, 3):
        line(folder, episode, **{"accuracy/first": 0.5})
    atomic_write_text(folder / "status.json", '{"state": "finished"}')
    os.close(lock)
    thread.join(20)
    assert [(status.state, status.episode) for status in found] == [("finished", 3)]
    assert "finished  a  episode 3/3" in console.export_text()


def test_the_command(run, tmp_path, capsys):
    assert cli.main(["watch", str(run), "--once", "--responses", "1"]) == 0
    assert "effective samples, trained on" in capsys.readouterr().out
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    atomic_write_text(tmp_path / "config.yaml", "name: x\n")
    assert cli.main(["watch", str(tmp_path)]) == 1  # it never ran: a failure
    assert "no episode has ended yet" in capsys.readouterr().out


# -- the notebook -----------------------------------------------------------------------------------------------------


class Page:
    """What a notebook would show: outputs in order, each with everything that it showed."""

    def __init__(self) -> None:
        self.outputs: list[list] = []

    def display(self, content, display_id):
        assert display_id is True
        self.outputs.append([content])
        return self

    def update(self, content, place):
        self.outputs[place].append(content)


@pytest.fixture
def page(monkeypatch) -> Page:
    page = Page()

    class Handle:
        def __init__(self, place: int) -> None:
            self.place = place

        def update(self, content) -> None:
            page.update(content, self.place)

    def display(content, display_id):
        page.display(content, display_id)
        return Handle(len(page.outputs) - 1)

    monkeypatch.setattr(live, "display", display)
    return page


def test_the_notebook_shows_a_finished_run(run, page):
    status = live.watch(run, responses=3)
    assert status.state == "finished"
    head, figure, said = (output[-1] for output in page.outputs)
    assert "run: finished" in head.data and "episode 14/1" in head.data
    assert isinstance(figure, Image) and figure.data.startswith(b"\x89PNG")
    assert said.data.count('class="one"') == said.data.count("data:image/png;base64,") == 3
    assert "3 &lt; 5 &amp; so on" in said.data and "Responses of episode 14" in said.data
    assert "max-height: 14rem; overflow-y: auto" in head.data  # a long response does not push the others away


def test_the_notebook_is_renewed_in_place(tmp_path, page):
    """Three outputs whatever happens; what has not changed is not sent again."""
    write_run(tmp_path / "full", stages=(3,), queries=4, held_out=6)
    lines = (tmp_path / "full" / "metrics.jsonl").read_text().splitlines(keepends=True)
    folder = tmp_path / "run"
    atomic_write_text(folder / "config.yaml", "stages: [{name: a, episodes: 3}]\n")
    atomic_write_text(folder / "status.json", '{"state": "running"}')
    lock = locks.take(folder / "job/lock")
    assert lock is not None
    screen = live.Screen(Job(folder), 2, live.LIGHT)
    screen.look()
    screen.look()
    assert [len(output) for output in page.outputs] == [1, 1, 1]
    assert all(isinstance(output[0], HTML) for output in page.outputs)
    (folder / "rollouts").mkdir()
    first = next(index for index, text in enumerate(lines) if '"episode", "episode": 1' in text) + 1
    (folder / "metrics.jsonl").write_text("".join(lines[:first]))
    name = "rollouts/episode-00001.parquet"
    (folder / name).write_bytes((tmp_path / "full" / name).read_bytes())
    assert screen.look().state == "running"
    screen.look()
    assert [len(output) for output in page.outputs] == [2, 2, 2]
    assert live.watch(folder, every=0.02, timeout=0.1).state == "running"  # another cell: three outputs of its own
    assert len(page.outputs) == 6
    assert live.watch(folder, every=60, until=1).episode == 1
    os.close(lock)
    assert live.watch(folder, theme="dark").state == "failed"


@pytest.mark.parametrize(
    ("state", "words", "half"),
    [("finished", "episode 2/4 (budget used up)", False), ("stopped", "episode 2/4", True)],
)
def test_a_run_that_a_budget_ended_has_a_full_bar(tmp_path, page, state, words, half):
    atomic_write_text(tmp_path / "config.yaml", "stages: [{name: a, episodes: 4}]\nbudget: {steps: 4}\n")
    atomic_write_text(tmp_path / "status.json", json.dumps({"state": state}))
    for episode in (1, 2):
        line(tmp_path, episode)
    text = printed(tmp_path)
    assert f"{state}  a  {words}  step 0" in text
    console = Console(width=80, color_system="truecolor", force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(watch.view(read(tmp_path), 0, console))
    (bar,) = [row for row in console.export_text(styles=True).splitlines() if "━" in row]
    assert [part.count("━") for part in bar.split("\x1b[0m") if "━" in part] == ([40, 40] if half else [80])
    live.watch(tmp_path)
    head = page.outputs[0][-1].data
    assert words in head and f'style="width:{50 if half else 100}.0%"' in head
    assert str(Job(tmp_path).status()) == f"{state}, {words}, a"


@pytest.mark.parametrize(("rewards", "bottom"), [((-0.4, None, 0.2), -0.4), ((0.1, 0.2), 0.0), ((None, None), 0.0)])
def test_negative_rewards_are_on_the_panel(tmp_path, rewards, bottom):
    """As where many tokens have a price."""
    for episode, reward in enumerate(rewards, 1):
        line(tmp_path, episode, **{"reward/mean": reward, "accuracy/first": 0.5})
    panel, *others = live.charts(read(tmp_path).metrics).figure.axes
    assert panel.get_ylim() == (bottom, 1.03) and {axis.get_ylim()[0] for axis in others} == {0.0}


def test_an_interrupt_ends_the_watching_only(tmp_path, page, monkeypatch):
    folder = tmp_path / "run"
    atomic_write_text(folder / "config.yaml", "name: run\n")
    lock = locks.take(folder / "job/lock")
    assert lock is not None

    def interrupt(self, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "wait", interrupt)
    assert live.watch(folder).state == "starting"
    console = Console(width=80, file=open(os.devnull, "w"))  # noqa: SIM115
    assert watch.follow(folder, console=console).state == "starting"
    os.close(lock)


def test_relative_images_start_where_the_job_did(run, tmp_path, monkeypatch):
    response = read(run).responses(1)[0]
    home, name = Path(response.images[0]).parent, Path(response.images[0]).name
    monkeypatch.setattr(Snapshot, "responses", lambda self, n: [replace(response, images=(name,))])
    monkeypatch.chdir(tmp_path)
    assert "data:image/png" in live.said(read(run), 1, home)
    assert f"The image {name} cannot be read any more" in live.said(read(run), 1, Path())
