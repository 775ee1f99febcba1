"""Start training jobs: ``accelerate launch`` in a process group of its own, watched, and stopped in good order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch

from rethinker.config import RunConfig, to_yaml
from rethinker.files import atomic_write_text
from rethinker.run_folder import STATUS_FILE, STOP_FILE
from rethinker.schema import ConfigError


def launch_command(config: RunConfig, config_file: Path, *, resume: bool) -> list[str]:
    """The command that starts the processes of a run."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]  # one traceback is enough
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
    command += ["-m", "rethinker.experiment", os.fspath(config_file)]
    return command + (["--resume"] if resume else [])


def check_accelerate_file(path: str) -> None:
    """Raises ConfigError where ``launch.accelerate`` names no file of `accelerate config`, or one for many machines."""
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
            f"launch.accelerate={path!r}: num_machines is {settings['num_machines']}; a run has to be on one machine"
        )


def train(config: RunConfig, *, resume: bool = False) -> int:
    """Run ``config`` to its end; returns the exit code. Raises ConfigError for a bad ``launch.accelerate``.

    The first Ctrl-C or SIGTERM (what a scheduler sends) saves and stops after the episode, the second one kills.
    """
    if config.launch.accelerate:
        check_accelerate_file(config.launch.accelerate)
    config_file = Path(config.runs_dir) / ".launch" / f"{config.name}.yaml"
    atomic_write_text(config_file, to_yaml(config))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(config.launch.threads),
        "OMP_WAIT_POLICY": "passive",  # idle threads would spin and take the other process's core
        "TOKENIZERS_PARALLELISM": "false",
    }
    (config.folder / STOP_FILE).unlink(missing_ok=True)  # of a run that was killed before it answered
    # A session of its own, or the terminal's Ctrl-C would end the processes before they could save.
    process = subprocess.Popen(
        launch_command(config, config_file, resume=resume), env=environment, start_new_session=True
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _wait(process, config)
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(process: subprocess.Popen[bytes], config: RunConfig) -> int:
    asked = False
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            if asked:
                # Not SIGKILL: torchrun's workers have sessions of their own and would outlive it; it passes SIGHUP on.
                os.killpg(process.pid, signal.SIGHUP)
                process.wait()
                print("killed; the last checkpoint is as it was", file=sys.stderr)
                return 130
            asked = True
            if (config.folder / STATUS_FILE).exists():
                (config.folder / STOP_FILE).touch()
                print("stopping after this episode, with a checkpoint (Ctrl-C again: at once)", file=sys.stderr)
            else:
                os.killpg(process.pid, signal.SIGTERM)  # nothing to save yet


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
