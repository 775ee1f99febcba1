"""accelerate: the command that starts a run's processes, and the files of `accelerate config`."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from rethinker.config import RunConfig
from rethinker.config.schema import ConfigError


def launch_command(config: RunConfig, config_file: Path, *, resume: bool) -> list[str]:
    """The command that starts the processes of a run."""
    import torch  # here: who only starts a job in the background (a notebook's kernel) has no use for it

    command = [sys.executable, "-m", "rethinker.lab.jobs", "launch"]
    if config.launch.accelerate:
        command += ["--config_file", config.launch.accelerate]
    else:
        processes = config.launch.processes
        command += ["--num_machines", "1", "--num_processes", str(processes), "--mixed_precision", "no"]
        command += ["--dynamo_backend", "no", "--main_process_port", str(_free_port())]
        if processes > 1:
            # Without GPUs this gives as many CPU processes over gloo; --cpu would start one only.
            command += ["--multi_gpu"]
        elif not torch.cuda.is_available():
            command += ["--cpu"]
    command += ["-m", "rethinker.lab.jobs", "rank", os.fspath(config_file)]
    return command + (["--resume"] if resume else [])


def check_accelerate_file(path: str) -> int:
    """The processes that a file of `accelerate config` (``launch.accelerate``) asks for. Raises ConfigError if it is
    no such file, or one for many machines."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"launch.accelerate={path!r}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"launch.accelerate={path!r}: not a file of `accelerate config`")
    if settings.get("num_machines", 1) != 1:
        raise ConfigError(
            f"launch.accelerate={path!r}: num_machines is {settings['num_machines']}; a run must use a single machine"
        )
    return settings.get("num_processes", 1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
