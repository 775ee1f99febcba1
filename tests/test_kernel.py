"""A kernel that is restarted finds the job that notebook 06 started, stops it, resumes it and finishes it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rethinker.lab.jobs import Job
from rethinker.lab.notebook.execute import KERNEL_START_S, check_parameters, find_notebooks

pytest.importorskip("papermill")

from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

NOTEBOOK = find_notebooks(["06"])[0]
EPISODES, STAGES, STOP_AFTER = 6, 3, 2  # EPISODES: of each stage
PARAMETERS = {
    "name": "restarted",
    "processes": 2,
    "episodes": EPISODES,
    "queries_per_episode": 4,
    "group_size": 2,
    "train_batch_size": 8,
    "draw_queries": 40,
    "stop_after": STOP_AFTER,
    "every": 0.2,
}


class Lab:
    """The notebook and its kernel, cell by cell."""

    def __init__(self, parameters: dict) -> None:
        book = load_notebook_node(str(NOTEBOOK))
        self.book: NotebookNode = parameterize_notebook(book, check_parameters(NOTEBOOK, parameters))
        resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
        self.client = NotebookClient(
            self.book, kernel_name="python3", timeout=None, startup_timeout=KERNEL_START_S, resources=resources
        )
        self.ids = [cell.id for cell in self.book.cells]

    def run(self, first: str | None, last: str | None) -> None:
        """The cells from ``first`` to ``last`` (their ids), both included; None: from the top, to the end."""
        start = 0 if first is None else self.ids.index(first)
        stop = len(self.ids) if last is None else self.ids.index(last) + 1
        for index in range(start, stop):
            self.client.execute_cell(self.book.cells[index], index)

    def restart(self) -> None:
        run_sync(self.client.km.restart_kernel)(now=True)
        run_sync(self.client.kc.wait_for_ready)(timeout=KERNEL_START_S)

    @property
    def kernel(self) -> int:
        return self.client.km.provisioner.pid

    def printed(self, cell: str) -> str:
        outputs = self.book.cells[self.ids.index(cell)].outputs
        return "".join(output.text for output in outputs if output.output_type == "stream")


@contextmanager
def opened(runs_dir: Path) -> Iterator[Lab]:
    """The notebook in a kernel; whatever happens, neither the kernel nor a job outlives the test."""
    lab = Lab({**PARAMETERS, "runs_dir": str(runs_dir)})
    try:
        with lab.client.setup_kernel():
            yield lab
    finally:
        with suppress(FileNotFoundError):  # it never started
            job = Job(runs_dir / PARAMETERS["name"])
            with suppress(ProcessLookupError):
                os.kill(job.record["pid"], signal.SIGCONT)
            job.kill()


def episodes(job: Job) -> list[int]:
    lines = (job.folder / "metrics.jsonl").read_text().splitlines()
    return [line["episode"] for line in map(json.loads, lines) if line["record"] == "episode"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # two starts of two processes and two kernels, on a busy machine
def test_a_restarted_kernel_finds_its_job_stops_it_and_finishes_it(tmp_path):
    with opened(tmp_path) as lab:
        lab.run(None, "06-06")
        job, kernel = Job(tmp_path / "restarted"), lab.kernel
        before = job.record
        # Held where it is until the new kernel has found it: otherwise a slow restart could find it finished.
        os.kill(before["pid"], signal.SIGSTOP)
        lab.restart()
        assert lab.kernel != kernel and job.alive
        lab.run(None, "06-06")
        assert job.record == before and job.alive  # found, not started again
        os.kill(before["pid"], signal.SIGCONT)

        lab.run("06-07", "06-12")
        assert job.record == before and job.status().state == "stopped"
        done = episodes(job)
        assert done == list(range(1, len(done) + 1)) and STOP_AFTER <= len(done) < STAGES * EPISODES
        assert lab.printed("06-10").startswith(f"stopped, episode {len(done)}/{STAGES * EPISODES}")
        assert "restarted" in lab.printed("06-12")

        lab.run("06-13", None)
        assert job.status().state == "finished" and episodes(job) == list(range(1, STAGES * EPISODES + 1))
        assert job.record["pid"] != before["pid"] and job.record["command"][-1] == "--resume"
        assert len(json.loads((job.folder / "provenance.json").read_text())["starts"]) == 2
        assert (job.folder / "report.html").is_file()
