"""The processes of a run: ``python -m rethinker.lab.jobs launch ...`` is accelerate's launcher, and ``... rank ...``
what it starts: ``rethinker.run``. Both write down how they fail (``failures``)."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rethinker.lab.jobs.failures import ERRORS_VARIABLE, TRACEBACK_VARIABLE, note_exceptions, note_signal, rank_name

CONSEQUENCE = 20  # seconds after the first failure


def rank() -> None:
    """One process that trains; the main one mirrors to W&B what it writes, where the config says so."""
    note_exceptions(rank_name(os.environ.get("RANK", "0")))
    with suppress(KeyError, OSError):
        faulthandler.enable(Path(os.environ[ERRORS_VARIABLE]).open("a"))  # noqa: SIM115 (open until the end)
    from rethinker.lab.wandb.mirror import open_mirror
    from rethinker.run import main

    main(make_sink=open_mirror)


def launch() -> None:
    """Accelerate's launcher, with its options, until all ranks have ended. It prints nothing about ranks that fail.

    A scheduler's SIGTERM reaches all processes of a job. Torch's launcher would give its ranks 30 seconds; here it is
    left to the process that waits (``foreground.train``), and to the ranks, which stop after their episode.
    """
    note_exceptions("accelerate's launcher")
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which the ranks would inherit
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if TRACEBACK_VARIABLE not in os.environ:
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch.main()
    except ChildFailedError as error:
        first = min(failure.timestamp for failure in error.failures.values())
        # Torchrun ends the other ranks then, by SIGTERM and half a minute later by SIGKILL: those are no causes.
        codes = {
            rank: failure.exitcode
            for rank, failure in error.failures.items()
            if failure.exitcode != -signal.SIGTERM and failure.timestamp < first + CONSEQUENCE
        }
    except subprocess.CalledProcessError as error:
        codes = {0: error.returncode}
    except SignalException:  # it was told to end
        codes = {}
    else:
        return
    for rank, code in codes.items():
        if code < 0:
            note_signal(f"rank {rank}", -code)
    sys.exit(1)


if __name__ == "__main__":
    part = {"rank": rank, "launch": launch}[sys.argv.pop(1)]
    part()
