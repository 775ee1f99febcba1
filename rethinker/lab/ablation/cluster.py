"""The runs of a grid as jobs of a Slurm cluster, submitted by submitit.

Every run is a job of its own. At the time limit, or before a preemption, Slurm signals submitit, which stops the run
(``TrainJob.checkpoint``: SIGTERM, so ``launch.grace_seconds`` holds) and puts the job back into the queue; it resumes
there. The jobs outlive the process that submitted them, and the next call finds those that are still queued. Not run on
a cluster by us: tested by submitit's local executor, whose jobs are processes of this machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rethinker.config import RunConfig, to_yaml
from rethinker.config.schema import ConfigError
from rethinker.lab.ablation.slots import RunOutcome, outcome
from rethinker.lab.jobs import Job
from rethinker.lab.jobs.files import is_alive, is_run
from rethinker.rundir.atomic import atomic_write_text, read_json

Where = Literal["slurm", "local"]
DEFAULTS = {"timeout_min": 24 * 60, "tasks_per_node": 1}  # submitit's own limit is 5 minutes
TIMEOUTS = 1000  # how often a job may reach its time limit and be queued again
POLL = 1.0  # seconds between looks at the jobs


class TrainJob:
    """What a job does, on each of its machines: `rethinker train` for one run."""

    def __init__(self, config: Path, home: str) -> None:
        """``config``: the run's file. ``home``: the working directory, where its relative paths start."""
        self.config, self.home = config, home
        self.pid: int | None = None

    def __call__(self) -> None:
        """Raises RuntimeError if the run does not end well, so that the job counts as failed."""
        import submitit

        here, environment = submitit.JobEnvironment(), dict(os.environ)
        if here.num_nodes > 1:
            environment.setdefault("MASTER_ADDR", here.hostnames[0])
        process = subprocess.Popen(
            [sys.executable, "-m", "rethinker.cli", "train", os.fspath(self.config), "--resume"],
            cwd=self.home,
            env=environment,
            # Slurm signals all processes of a job; the signal for submitit would end the run.
            preexec_fn=lambda: signal.signal(getattr(signal, f"SIG{here.USR_SIG}"), signal.SIG_IGN),
        )
        self.pid = process.pid
        if code := process.wait():
            raise RuntimeError(f"rethinker train ended with exit code {code}")

    def checkpoint(self) -> Any:
        """Called by submitit's signal handler: stop the run; returns the job that resumes it."""
        import submitit

        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)  # not Popen.wait, whose lock the interrupted call may hold
        return submitit.helpers.DelayedSubmission(TrainJob(self.config, self.home))


class ClusterJobs:
    """The jobs of what is left of a grid. ``folder``: the grid's; its ``submitit`` has scripts and logs."""

    def __init__(self, where: Where, folder: Path, options: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """``options``: of submitit's ``AutoExecutor.update_parameters``. Raises ConfigError if it refuses them, or
        there is no Slurm here."""
        import submitit

        self.folder, self.say = folder, say
        self.submitted = folder / "submitted.json"  # run -> id of its last job
        try:
            self.executor = submitit.AutoExecutor(folder / "submitit", where, slurm_max_num_timeout=TIMEOUTS)
            self.executor.update_parameters(**{**DEFAULTS, **options})
        except (NameError, RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(f"--on {where}: {' '.join(str(error).split())}") from error

    def run(self, configs: Sequence[RunConfig]) -> dict[str, RunOutcome]:
        """Submit what is neither queued nor running, wait for all, and tell how they ended. KeyboardInterrupt leaves
        the jobs where they are."""
        waiting = {config.name: config for config in configs}
        known = read_json(self.submitted)
        jobs = {name: self._job(known[name]) for name in waiting if name in known}
        new = [config for name, config in waiting.items() if not is_alive(config.folder) and _over(jobs.get(name))]
        if new:
            jobs |= self._submit(new)
        for name in waiting:
            at = f"job {jobs[name].job_id}" if name in jobs else "a job that was started otherwise"
            self.say(f"{name}: {'submitted, ' if name in {each.name for each in new} else 'is there already, '}{at}")
        outcomes: dict[str, RunOutcome] = {}
        while waiting:
            for name, config in list(waiting.items()):
                if _over(jobs.get(name)) and not is_alive(config.folder):
                    del waiting[name]
                    outcomes[name] = self._outcome(config, jobs.get(name))
                    self.say(f"{name}: {outcomes[name].state}")
            time.sleep(POLL if waiting else 0)
        return outcomes

    def _submit(self, configs: Sequence[RunConfig]) -> dict[str, Any]:
        jobs = {}
        with self.executor.batch():
            for config in configs:
                file = self.folder / "configs" / f"{config.name}.yaml"
                atomic_write_text(file, to_yaml(config))
                jobs[config.name] = self.executor.submit(TrainJob(file.absolute(), os.getcwd()))
        known = read_json(self.submitted) | {name: job.job_id for name, job in jobs.items()}
        atomic_write_text(self.submitted, json.dumps(known, indent=1))
        return jobs

    def _job(self, number: str) -> Any:
        return self.executor.job_class(self.executor.folder, number)

    def _outcome(self, config: RunConfig, job: Any) -> RunOutcome:
        if is_run(config.folder):
            found = outcome(Job(config.folder), killed=False)
            if found.state != "failed":
                return found
        log = (job.stdout() or "") + (job.stderr() or "") if job is not None else ""
        return RunOutcome("failed", "", tuple(log.splitlines()[-12:]))


def _over(job: Any) -> bool:
    """Whether a job has ended; None: there is none."""
    return job is None or job.done()
