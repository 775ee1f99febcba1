"""environment.yml and pyproject.toml describe one environment; the set-up script finds a way to install it."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
import types
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def conda() -> tuple[dict[str, str], list[str]]:
    """Conda's own requirements (name -> version range) and pip's list."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    named = {}
    for entry in entries:
        if isinstance(entry, str):
            name, _, _ = re.split(r"([<>=!~]|$)", entry, maxsplit=1)
            named[name] = entry.removeprefix(name)
    return named, next(entry["pip"] for entry in entries if isinstance(entry, dict))


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_conda_has_the_same_python(project: dict[str, Any], conda: tuple[dict[str, str], list[str]]) -> None:
    assert SpecifierSet(conda[0]["python"]) == SpecifierSet(project["requires-python"])


def test_conda_installs_this_package_with_extras_that_exist(
    project: dict[str, Any], conda: tuple[dict[str, str], list[str]]
) -> None:
    assert len(conda[1]) == 1, "every other version belongs into pyproject.toml"
    match = re.fullmatch(r"-e \.\[([\w,]+)\]", conda[1][0])
    assert match is not None
    extras = set(match[1].split(","))
    assert extras <= set(project["optional-dependencies"])
    assert "gpu" in extras
    assert "cpu" not in extras


def test_conda_adds_nothing_but_python_and_a_bounded_pip(conda: tuple[dict[str, str], list[str]]) -> None:
    assert set(conda[0]) == {"python", "pip"}
    assert all(conda[0].values()), "a version range for each"


def test_every_requirement_has_a_range(project: dict[str, Any]) -> None:
    """An unpinned torch is several gigabytes of another torch."""
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for entries in lists for text in entries]
    open_ended = [
        r.name
        for r in requirements
        if r.name != "packaging" and not any(s.operator in ("<", "==") for s in r.specifier)
    ]
    assert open_ended == []
    core = [canonicalize_name(Requirement(text).name) for text in project["dependencies"]]
    assert len(core) == len(set(core))


def test_extras_stay_in_the_range_of_the_core(project: dict[str, Any]) -> None:
    core = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for extra in ("cpu", "gpu"):
        for pinned in map(Requirement, project["optional-dependencies"][extra]):
            (only,) = pinned.specifier
            assert only.operator == "=="
            assert pinned.name not in core or only.version in core[pinned.name], f"{extra}: {pinned}"


def test_set_up_supports_the_same_pythons(project: dict[str, Any], install: ModuleType) -> None:
    supported = SpecifierSet(project["requires-python"])
    candidates = [(3, minor) for minor in range(8, 20)]
    assert tuple(v for v in candidates if f"{v[0]}.{v[1]}.1" in supported) == install.SUPPORTED
    assert set(install.DEV_EXTRAS) <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("reachable", "extras", "pip_args"),
    [
        ("pypi", ["cpu"], ["-v"]),
        ("index", ["cpu"], ["-v", "--extra-index-url", "https://download.pytorch.org/whl/cpu"]),
        ("nothing", [], ["-v"]),
    ],
)
def test_set_up_goes_on_without_vllm_and_says_so(
    reachable: str,
    extras: list[str],
    pip_args: list[str],
    install: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def can_get(python: Path, requirements: list[str], args: list[str]) -> bool:
        return reachable == "pypi" or (reachable == "index" and install.PYTORCH_CPU_INDEX in args)

    monkeypatch.setattr(install, "can_get", can_get)
    assert install.plan_cpu(Path(sys.executable), ["-v"]) == (extras, pip_args)
    said = capsys.readouterr().out
    assert ("without vLLM" in said) == (reachable == "nothing")
    assert len(said.splitlines()) == (reachable != "pypi")


def test_pip_is_asked_for_the_torch_that_vllm_needs(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.sys, "platform", "linux")
    assert any(re.fullmatch(r"torch==[\d.]+\+cpu", r) for r in install.cpu_requirements())
    monkeypatch.setattr(install.sys, "platform", "darwin")
    assert not any("+cpu" in r for r in install.cpu_requirements())


def test_set_up_clears_only_environments_made_for_the_other_extra(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[bool] = []
    monkeypatch.setattr(install.venv, "create", lambda folder, clear, **options: made.append(clear))
    monkeypatch.setattr(install.subprocess, "run", lambda *a, **k: types.SimpleNamespace(returncode=0))
    install.make_venv(tmp_path / "new", "cpu")
    assert made == [False]

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="not a virtual environment"):
        install.make_venv(precious, "cpu")

    working = tmp_path / "working"
    (working / "bin").mkdir(parents=True)
    (working / "bin" / "python").touch()
    (working / "pyvenv.cfg").touch()
    (working / install.CHOSEN_EXTRA).write_text("cpu\n")
    install.make_venv(working, "cpu")
    assert made == [False]
    install.make_venv(working, "gpu")
    assert made == [False, True]


def test_the_makefile_reads_the_extra_that_set_up_wrote(install: ModuleType) -> None:
    assert f"cat $(VENV)/{install.CHOSEN_EXTRA}" in (ROOT / "Makefile").read_text()
