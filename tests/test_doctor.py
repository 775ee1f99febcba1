"""The doctor must say what is wrong, never be what is wrong; the repair must touch only what is broken."""

from __future__ import annotations

import secrets
import subprocess
import sys
import types
import venv
from pathlib import Path

import numpy as np
import pytest
import wandb
from safetensors.numpy import save_file
from wandb.sdk.lib.urls import DEFAULT_BASE_URL
from wandb.sdk.lib.wbauth import wbnetrc

from rethinker.lab import doctor
from rethinker.lab.doctor import LIBRARIES, Check, check_library

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "repair_torchvision.py"


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


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('noise'); found = 3", Check("x", "ok", 3)),  # type: ignore[arg-type]
        ("found, hint = 'old', 'get a new one'", Check("x", "warning", "old", "get a new one")),
        ("import no_such_package", Check("x", "broken", "ModuleNotFoundError: No module named 'no_such_package'", "f")),
        ("import os; os._exit(7)", Check("x", "broken", "ended with exit code 7", "f")),
        ("import time; time.sleep(60)", Check("x", "broken", "no answer within 5 s", "f")),
    ],
)
def test_a_library_that_fails_is_a_row(code: str, expected: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT", 5)
    monkeypatch.setitem(LIBRARIES, "x", (code, "f"))
    assert check_library("x") == expected


def test_a_missing_package_is_broken_and_an_untried_version_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy>=1,<99", "rich>=1,<99", "no-such-package==1; extra == 'cpu'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: declared)
    assert doctor.check_packages().status == "ok"
    declared[1] = "rich<1"
    untried = doctor.check_packages()
    assert untried.status == "warning" and "(tried: <1)" in untried.found
    declared[0] = "no-such-package>=2"
    missing = doctor.check_packages()
    assert missing.status == "broken" and missing.found.endswith("missing: no-such-package")


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
        found = check_library("W&B")
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


class Environment:
    """A real virtual environment whose torchvision, torchaudio, transformers and pip are a few lines each."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site = folder / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
        self.file = self.site / "rethinker_torchvision_without_operators.pth"
        self.pip_calls = folder / "pip-calls"
        operators = "raise RuntimeError('operator torchvision::nms does not exist')\n"
        self.write("torchvision/__init__.py", "from torchvision import _meta_registrations\n")
        self.write("torchvision/_meta_registrations.py", operators)
        names = "AutoProcessor = Qwen2_5_VLForConditionalGeneration = Qwen2_5_VLProcessor = object\n"
        self.write("transformers.py", f"import torchvision\n{names}")
        pip = f"import sys\nwith open({str(self.pip_calls)!r}, 'a') as calls: print(*sys.argv[1:], file=calls)\n"
        pip += "if sys.argv[1] == 'uninstall':\n    import shutil, sysconfig\n"
        pip += "    shutil.rmtree(sysconfig.get_path('purelib') + '/torchaudio-2.1.dist-info')\n"
        self.write("pip/__main__.py", pip)

    def write(self, name: str, text: str) -> None:
        path = self.site / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.python, *map(str, arguments)], capture_output=True, text=True, check=False)

    def torchvision_works(self) -> bool:
        return self.run("-c", "import torchvision").returncode == 0


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "env")


def test_repair_and_undo(environment: Environment) -> None:
    assert not environment.torchvision_works()
    done = environment.run(SCRIPT)
    assert done.returncode == 0 and "operator torchvision::nms does not exist" in done.stdout, done
    assert str(environment.file) in done.stdout and environment.torchvision_works()
    again = environment.run(SCRIPT)
    assert (again.returncode, again.stdout) == (0, "")
    undone = environment.run(SCRIPT, "--undo")
    assert undone.returncode == 0 and f"removed {environment.file}" in undone.stdout
    assert not environment.file.exists() and not environment.torchvision_works()
    assert "nothing to undo" in environment.run(SCRIPT, "--undo").stdout
    assert not environment.pip_calls.exists()


def test_a_companion_that_cannot_be_imported_is_uninstalled_and_comes_back(environment: Environment) -> None:
    environment.write("torchaudio-2.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: torchaudio\nVersion: 2.1\n")
    environment.write("torchaudio.py", "raise OSError('libcudart.so: cannot open shared object file')")
    environment.write("torchcodec-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torchcodec\nVersion: 1.0\n")
    environment.write("torchcodec.py", "")
    done = environment.run(SCRIPT)
    assert done.returncode == 0 and "uninstalled torchaudio 2.1" in done.stdout and "libcudart" in done.stdout
    environment.write("torchvision/_meta_registrations.py", "")  # a build that fits has been installed
    assert environment.run(SCRIPT).returncode == 0 and environment.torchvision_works()
    assert environment.file.read_text().splitlines()[1:] == ["# uninstalled: torchaudio==2.1"]
    assert "installed torchaudio==2.1 again" in environment.run(SCRIPT, "--undo").stdout
    calls = environment.pip_calls.read_text().splitlines()
    assert calls == ["uninstall --quiet --yes torchaudio", "install --quiet --no-deps torchaudio==2.1"]


def test_a_working_environment_is_left_alone(environment: Environment) -> None:
    environment.write("torchvision/_meta_registrations.py", "")
    done = environment.run(SCRIPT)
    assert (done.returncode, done.stdout) == (0, "") and not environment.file.exists()


def test_the_repair_is_taken_back_when_torchvision_works(environment: Environment) -> None:
    assert environment.run(SCRIPT).returncode == 0 and environment.file.exists()
    environment.write("torchvision/_meta_registrations.py", "")
    assert "works by itself now" in environment.run(SCRIPT).stdout and not environment.file.exists()


def test_a_repair_that_does_not_help_is_an_error(environment: Environment) -> None:
    environment.write("transformers.py", "raise ImportError('no torch')")
    done = environment.run(SCRIPT)
    assert done.returncode == 1 and "did not help: ImportError: no torch" in done.stdout
    assert "make setup" in done.stdout
