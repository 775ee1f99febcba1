"""The README names files that are there and settings that load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rethinker import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = sorted({link for link in re.findall(r'\]\(([^)#]+)\)|src(?:set)?="([^"]+)"', TEXT) for link in link if link})


@pytest.mark.parametrize("link", [link for link in LINKS if "://" not in link])
def test_links_lead_somewhere(link: str):
    assert (ROOT / link).exists()


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@@|TODO|TBD", TEXT)


def test_the_tree_names_every_module():
    tree = TEXT.partition("## The tree")[2]
    modules = {path.name for path in (ROOT / "rethinker").glob("*.py")} - {"__init__.py"}
    missing = {name for name in modules if not re.search(rf"\b{re.escape(name)}", tree)}
    assert not missing


def test_the_commands_parse():
    lines = re.findall(r"^    \.venv/bin/rethinker ([^#\n]+?)\s*(?:#.*)?$", TEXT, flags=re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        cli.parse(line.split())
