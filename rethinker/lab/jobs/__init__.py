"""Launch training from a notebook or the command line: ``start``, ``find``, ``ensure``, and ``train``, which waits.

    job = launch.ensure(load_config("experiments/tiny.yaml"))     # started, found again, gone on with, or loaded
    job.status(), job.tail(), job.follow(), job.wait(), job.stop(), job.resume()

Training runs in processes of its own (accelerate's), so a kernel that is restarted finds its job again. Who may write a
folder is settled in ``jobs.claim``. Nothing here is from the paper.
"""

from __future__ import annotations

import time

from rethinker.config import RunConfig
from rethinker.lab.jobs.claim import RunBusy, is_same
from rethinker.lab.jobs.files import config_file, is_run
from rethinker.lab.jobs.foreground import train
from rethinker.lab.jobs.handle import POLL, Job, JobStatus, find, start
from rethinker.rundir.folder import check_settings
from rethinker.rundir.paths import RunDir

__all__ = ["Job", "JobStatus", "RunBusy", "ensure", "find", "start", "train"]

ATTEMPTS = 100  # of ``ensure``, POLL seconds apart: who won the lock writes its files within milliseconds, mostly


def ensure(config: RunConfig) -> Job:
    """The run of ``config``, whatever it takes: a finished one is loaded, one that runs is returned, one that was
    stopped, killed or failed goes on from its last checkpoint, a new one is started.

    Raises RunExists, which names them, where the run of this name has other settings.
    """
    folder = config.folder
    for attempt in range(ATTEMPTS):
        if is_run(folder) and (job := Job(folder)).alive:
            check_settings(folder, config_file(folder), config)
            # Another kernel may have just started it, and not yet written whom it started.
            if is_same(job.record) or attempt == ATTEMPTS - 1:
                return job
            time.sleep(POLL)
            continue
        try:
            return start(config, resume=RunDir(folder).config.exists())
        except RunBusy:  # another kernel is faster: its job, once it is there, is ours too
            time.sleep(POLL)
    return start(config, resume=RunDir(folder).config.exists())
