"""accelerate: the command that starts a run's processes on this machine, and the files of `accelerate config`."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rethinker.config import RunConfig
from rethinker.config.schema import ConfigError

PORT = 29500  # torch's, where nothing names another


@dataclass(frozen=True)
class Machine:
    """This machine among those of a run."""

    count: int = 1  # machines
    rank: int = 0  # of this one; machine 0 owns the run's folder
    address: str = ""  # of machine 0, as the others reach it
    port: int = PORT  # on machine 0


def machine_count(config: RunConfig, home: str | Path = "") -> int:
    """The machines of a run. ``home``: where relative paths start. Raises ConfigError for a bad accelerate file."""
    if not config.launch.accelerate:
        return config.launch.machines
    return int(read_accelerate_file(os.fspath(Path(home, config.launch.accelerate))).get("num_machines", 1))


def this_machine(config: RunConfig) -> Machine:
    """Which of the run's machines this is. The settings of ``launch`` come first, then the environment (Slurm's
    SLURM_PROCID with one task a machine, MASTER_ADDR, MASTER_PORT), then the file of ``launch.accelerate``.

    Raises ConfigError where several machines are asked for and nothing says which one this is, or where machine 0 is.
    """
    count, launch = machine_count(config), config.launch
    if count == 1:
        return Machine()
    file = read_accelerate_file(launch.accelerate) if launch.accelerate else {}
    rank = launch.machine_rank
    if rank is None and os.environ.get("SLURM_STEP_NUM_TASKS") == str(count):
        rank = int(os.environ["SLURM_PROCID"])
    if rank is None:
        rank = file.get("machine_rank")
    address = launch.address or os.environ.get("MASTER_ADDR") or file.get("main_process_ip")
    port = launch.port or os.environ.get("MASTER_PORT") or file.get("main_process_port") or PORT
    if rank is None or not 0 <= rank < count:
        raise ConfigError(
            f"{count} machines, and this one is {rank}: set launch.machine_rank from 0 to {count - 1}, or start one "
            "Slurm task a machine (srun --ntasks-per-node=1)"
        )
    if not address:
        raise ConfigError(f"{count} machines: set launch.address, or MASTER_ADDR, to the address of machine 0")
    return Machine(count, rank, str(address), int(port))


def launch_command(config: RunConfig, config_file: Path, machine: Machine, *, resume: bool) -> list[str]:
    """The command that starts the run's processes on this machine."""
    import torch  # here: who only starts a job in the background (a notebook's kernel) has no use for it

    command = [sys.executable, "-m", "rethinker.lab.jobs", "launch"]
    if config.launch.accelerate:
        command += ["--config_file", config.launch.accelerate]
    else:
        processes = machine.count * config.launch.processes
        command += ["--num_machines", str(machine.count), "--num_processes", str(processes)]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        if machine.count == 1:
            command += ["--main_process_port", str(_free_port())]
        if processes > 1:
            # Without GPUs this gives as many CPU processes over gloo; --cpu would start one only.
            command += ["--multi_gpu"]
        elif not torch.cuda.is_available():
            command += ["--cpu"]
    if machine.count > 1:
        command += ["--machine_rank", str(machine.rank)]
        command += ["--main_process_ip", machine.address, "--main_process_port", str(machine.port)]
    command += ["-m", "rethinker.lab.jobs", "rank", os.fspath(config_file)]
    return command + (["--resume"] if resume else [])


def read_accelerate_file(path: str) -> dict[str, Any]:
    """What a file of `accelerate config` (``launch.accelerate``) says. Raises ConfigError if it is no such file."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"launch.accelerate={path!r}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"launch.accelerate={path!r}: not a file of `accelerate config`")
    return {str(key): value for key, value in settings.items()}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
