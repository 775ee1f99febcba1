"""Cells of the notebooks, executed in this process: on runs that lack things, with parameters that are not defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from synthetic_run import write_run

from rethinker.lab.notebook.execute import find_notebooks

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Notebooks enter the repository, widen tables and choose a number type; undone after each test."""
    monkeypatch.chdir(ROOT)
    with pd.option_context("display.max_colwidth", pd.get_option("display.max_colwidth")):
        yield
    torch.set_default_dtype(torch.float32)


def execute(number: str, first: int | None = None, **parameters: Any) -> dict[str, Any]:
    """The names after the ``first`` code cells (None: all) of a notebook with ``parameters``; values are not shown."""
    (path,) = find_notebooks([number])
    names: dict[str, Any] = {}
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"][:first]
    for place, source in enumerate(cells):
        exec(source, names)
        if not place:
            assert parameters.keys() <= names.keys()
            names |= parameters
    return names


@pytest.fixture(scope="module")
def bare_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1 without replay, before any evaluation: nothing in the buffer, nothing forced, no reflection."""
    run = write_run(tmp_path_factory.mktemp("world") / "run", stages=(1,), queries=6, held_out=4)
    (run / "config.yaml").write_text("name: bare\nreplay:\n  mode: filter\n")
    metrics = run / "metrics.jsonl"
    metrics.write_text(re.sub(r'"replay/buffer_size": [0-9.]+', '"replay/buffer_size": 0', metrics.read_text()))
    for file in (run / "evaluation").iterdir():
        file.unlink()
    return run


@pytest.mark.parametrize(
    ("number", "parameters", "missing"),
    [
        ("03", {}, ()),
        ("04", {"draws": 100}, ("kept no sample for replay",)),
        ("05", {"responses": 2, "limit": 8}, ("Nothing was forced to rethink",)),
        ("08", {}, ("Nothing was forced to rethink", "No first response reflects", "No evaluation")),
    ],
)
def test_any_run_will_do(number, parameters, missing, bare_run, monkeypatch):
    from rethinker.lab.notebook import show

    said: list[str] = []
    monkeypatch.setattr(show, "display", lambda item: said.append(str(item.data)))
    execute(number, run=str(bare_run), **parameters)
    for text in missing:
        assert any(text in item for item in said), text


def test_a_query_that_is_not_there():
    for number, cells in (("01", 3), ("05", 4)):
        with pytest.raises(ValueError, match="query=99: 4 queries were read; places are 0 to 3"):
            execute(number, cells, query=99, limit=4)


def test_the_prompt_is_the_configs():
    """Of the 7B config: the official code's request for a box."""
    names = execute("01", 3, config="experiments/vl_rethinker_7b.yaml", limit=4)
    messages = nbformat.read(find_notebooks(["01"])[0], 4).cells
    (cell,) = [cell.source for cell in messages if "chat_messages(asked" in cell.source and cell.cell_type == "code"]
    *before, last = cell.splitlines()
    exec("\n".join([*before, f"shown = {last}"]), names)
    assert names["shown"][0]["content"][-1]["text"].endswith("put your final answer within \\boxed{}.")


def test_the_grid_file_alone_is_full_scale():
    file = "experiments/ablations/grid.yaml"
    grid = execute("07", 2, grid_file=file)["grid"]
    assert len(grid.runs) == 12 and {run.config.seed for run in grid.runs} == {0, 1, 2} and grid.slots == 1
    assert {run.config.episodes for run in grid.runs} == {100}  # the paper's stages: no price on tokens
    assert len(execute("07", 2)["grid"].runs) == 4  # the smoke grid's own two seeds


def test_what_is_given_goes_before_the_grid_file():
    overrides = "name=other 'data.prompt_suffix=in a box'"
    grid = execute("07", 2, seeds="4, 5, 6", slots=3, overrides=overrides, runs_dir="elsewhere")["grid"]
    assert (grid.name, grid.slots, grid.folder) == ("other", 3, Path("elsewhere/other"))
    assert {run.config.seed for run in grid.runs} == {4, 5, 6}
    assert {run.config.data.prompt_suffix for run in grid.runs} == {"in a box"}


def test_grpo_by_hand():
    """Notebook 02 computes by the library's functions what its text and its cells work out by hand."""
    names = execute("02")
    std, none = names["scales"]["std"], names["scales"]["none"]
    assert std[0, 0].item() == pytest.approx(7 / 8 / (1 / 8) ** 0.5, abs=1e-4) and none[0, 0].item() == 7 / 8
    assert std[6, 7].item() == -std[0, 0].item()
    assert names["equal_G"].std() != 0 and abs(names["naive_G"][0].item()) > 1e-3  # the noise that the text tells of
    assert not names["group_advantages"](names["shaped_PG"])[0].eq(0).any()  # all right, and yet a signal
    mask = names["mask_BT"]
    assert names["loss_BT"][mask].tolist() == pytest.approx([-2.025, -1.5, -0.75, 0.75, 0.4])
    assert names["gradient_BT"][mask].tolist() == pytest.approx([0.0, -1.5, -0.75, 0.75, 0.0])
    assert names["called"] == pytest.approx(names["by_hand"])
    for name, row in names["rows"].items():
        assert row["whole batch"] == pytest.approx(row["sum of shares"]) == pytest.approx(names["by_hand"][name])
    assert names["rows"]["token_mean"]["mean of local means"] == pytest.approx(-0.425)
    means = {k: (names["policy_V"] * values).sum().item() for k, values in names["estimates"].items()}
    assert means["k1"] == pytest.approx(names["exact"].item()) == means["k3"] != pytest.approx(means["k2"], rel=1e-3)
    assert names["loss"].item() == pytest.approx(0, abs=1e-12) and names["gradient_V"][2] < 0


def test_replay_by_hand():
    """Notebook 04 up to its own selector: Algorithm 1, an empty batch in the next episode, three modes side by side."""
    names = execute("04", 10, draws=50)
    batch = names["batch"]
    assert [sample.replayed for sample in batch] == [False] * 7 + [True] * 5
    assert names["replay"].select(names["unanimous"]) == []
    assert names["sizes"] == {
        "grpo": {"samples": 12, "effective": 7},
        "filter": {"samples": 7, "effective": 7},
        "ssr": {"samples": 12, "effective": 12},
    }
    assert names["own"].sum() == pytest.approx(1) and (names["own"][names["A"] <= 1] == 0).all()


def test_a_second_look_by_hand():
    """Notebook 05 up to the packed row: what its cells make one by one is what the calls of training make."""
    names = execute("05", 14, responses=4, limit=8)
    plan, trajectory = names["plan"], names["trajectory"]
    found = names["trajectories"][plan.sample_id]  # its log-probs differ by rounding: another batch
    assert (found.response.token_ids, found.rethinking) == (trajectory.response.token_ids, trajectory.rethinking)
    kept = [sample for sample in names["marked"] if sample.rethinking.kept]
    assert set(kept) <= set(names["rethought"].samples) and len(names["rethought"].samples) == 4
    assert len(names["row"].paths) == 4 + len(names["plans"])
    assert {sample.rethinking.first_tokens for sample in names["own"].values()} == {plan.first_tokens}


def test_alpha_reaches_every_cell_of_the_law():
    names = execute("04", 8, alpha=3.0, draws=50)
    assert set(names["sweep"]["alpha"]) == {0.0, 0.5, 1.0, 2.0, 3.0, 4.0} and set(names["shown"]["alpha"]) == {3.0}
