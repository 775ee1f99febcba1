"""Launch training from a notebook or the command line: ``start``, ``find``, ``ensure``, and ``train``, which waits.

    job = jobs.ensure(load_config("experiments/tiny.yaml"))     # started, found again, resumed, or loaded
    job.status(), job.tail(), job.follow(), job.wait(), job.stop(), job.resume()

Training runs in processes of its own (accelerate's), so a kernel that is restarted finds its job again. Who may write a
folder is settled in ``jobs.ownership``. Nothing here is from the paper.
"""

from rethinker.lab.jobs.foreground import train
from rethinker.lab.jobs.job import Job, JobStatus, ensure, find, start
from rethinker.lab.jobs.ownership import RunBusy

__all__ = ["Job", "JobStatus", "RunBusy", "ensure", "find", "start", "train"]
