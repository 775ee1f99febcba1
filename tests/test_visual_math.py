"""The visual-math world: right answers, a needed image, distinct queries, the same files from the same seed."""

import hashlib
import random
import re
import shutil
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rethinker.datasets.io import load_queries
from rethinker.datasets.world import visual_math
from rethinker.datasets.world.drawing import COLORS
from rethinker.datasets.world.puzzles import KINDS, LEVELS, Puzzle, make_puzzle
from rethinker.datasets.world.traces import Loss, plain_trace, rethinking_trace
from rethinker.datasets.world.visual_math import contact_sheet, draw_puzzles, make_data

EVERY = [(kind, level) for kind in KINDS for level in LEVELS]


def some(kind: str, level: int, count: int = 30) -> list[Puzzle]:
    return [make_puzzle(kind, level, random.Random(f"{kind}/{level}/{index}")) for index in range(count)]


@pytest.mark.parametrize(("kind", "level"), EVERY)
def test_derivations_are_arithmetically_true_and_end_in_the_answer(kind: str, level: int) -> None:
    for puzzle in some(kind, level):
        equations = re.findall(r"(\d+(?:[+*-]\d+)+)=(\d+)", puzzle.derivation)
        assert equations
        for left, right in equations:
            if "*" in left:
                a, b = left.split("*")
                assert int(a) * int(b) == int(right)
            else:
                assert sum(map(int, re.findall(r"[+-]?\d+", left))) == int(right)
        assert equations[-1][1] == puzzle.answer
        assert puzzle.derivation.endswith(f"The answer is \\boxed{{{puzzle.answer}}}.")
        assert puzzle.image.size == (64, 64)
        assert puzzle.question.startswith("<image>")
        assert not re.search(r"\d", puzzle.question.replace("12:00", "")) or kind == "table"


@pytest.mark.parametrize("level", LEVELS)
def test_bar_heights_read_from_the_pixels_give_the_answer(level: int) -> None:
    for puzzle in some("bars", level):
        pixels = np.asarray(puzzle.image)
        heights = []
        for name in re.findall(r"(\w+) bar", puzzle.question):
            rows = np.flatnonzero((pixels == COLORS[name]).all(-1).any(1))
            heights.append(round((60 - rows.min()) / 6))
        expected = sum(heights) if "total" in puzzle.question else heights[0] - heights[1]
        assert int(puzzle.answer) == expected


@pytest.mark.parametrize("level", [1, 2])
def test_shapes_counted_in_the_pixels_give_the_answer(level: int) -> None:
    for puzzle in some("count", level):
        color = COLORS[puzzle.question.split()[2]]
        cells = np.asarray(puzzle.image).reshape(4, 16, 4, 16, 3).transpose(0, 2, 1, 3, 4)
        # A shape's centre is within a pixel of its cell's, and its radius is at least four.
        assert int(puzzle.answer) == sum((cell[8, 8] == color).all() for row in cells for cell in row)


def test_the_hands_of_the_clock_point_at_the_answer() -> None:
    for puzzle in some("clock", 3):
        pixels = np.asarray(puzzle.image).astype(int)
        ys, xs = np.nonzero((pixels == COLORS["red"]).all(-1))
        face = np.argwhere((pixels == 0).all(-1))  # ring and ticks: symmetric around the centre
        middle_y, middle_x = (face.min(0) + face.max(0)) / 2
        turn = np.arctan2((xs - middle_x).mean(), -(ys - middle_y).mean()) / (2 * np.pi) % 1
        minute = int(puzzle.answer) % 60
        assert min(abs(turn * 60 - minute), 60 - abs(turn * 60 - minute)) < 2.5


def test_a_question_without_its_image_leaves_the_answer_open() -> None:
    """The best blind guess is the commonest answer to a question: it must stay a bad one.

    6,000 draws: the share (0.14) has a standard error of 0.005, so that 0.3 is never reached by accident.
    """
    rng = random.Random(3)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _ in range(6000):
        puzzle = make_puzzle(rng.choice(KINDS), rng.choice(LEVELS), rng)
        answers[puzzle.question][puzzle.answer] += 1
    guessed = sum(counts.most_common(1)[0][1] for counts in answers.values())
    assert guessed / 6000 < 0.3


def test_unknown_kinds_and_levels_are_named() -> None:
    with pytest.raises(ValueError, match=r"maze.*count, sum"):
        make_puzzle("maze", 1, random.Random(0))
    with pytest.raises(ValueError, match="level 4"):
        make_puzzle("sum", 4, random.Random(0))


def test_traces_imitate_everything_but_a_forced_start() -> None:
    puzzle = make_puzzle("sum", 1, random.Random(0))
    assert [part.loss for part in plain_trace(puzzle)] == [Loss.TOKENS]
    trigger = "\n\nWait, there might be a mistake"
    rng = random.Random(1)
    traces = [rethinking_trace(puzzle, [trigger], 0.6, rng) for _ in range(500)]
    for trace in traces:
        assert [part.loss for part in trace] == [Loss.NONE, Loss.DECISION, Loss.TOKENS, Loss.TOKENS]
        _, break_, rest, derivation = trace
        assert break_.text + rest.text == trigger
        assert derivation.text == f". {puzzle.derivation}"
    # 500 draws at 0.6: 0.1 is 4.6 standard errors, a false alarm of about 5e-6 (and the seed is fixed).
    wrong = sum(trace[0].text != puzzle.bare_answer for trace in traces)
    assert abs(wrong / 500 - 0.6) < 0.1
    with pytest.raises(ValueError, match="does not begin"):
        rethinking_trace(puzzle, ["Wait"], 0.6, rng)


def contents(folder: Path, split: str) -> list[str]:
    """Question and pixels of every query of a split, as written."""
    queries, dropped = load_queries(folder, split)
    assert not dropped
    return [query.question + Image.open(query.images[0]).tobytes().hex() for query in queries]


def test_splits_share_no_query_and_repeat_none(tmp_path: Path) -> None:
    out = make_data(tmp_path / "data", 180, 36, 72, seed=5)
    everything = [text for split in ("train", "validation", "test") for text in contents(out, split)]
    assert len(everything) == len(set(everything)) == 180 + 36 + 72
    queries, _ = load_queries(out, "test")
    assert Counter((query.category, query.level) for query in queries) == dict.fromkeys(EVERY, 4)
    assert len({query.qid for query in queries}) == 72


def test_a_crowded_world_still_draws_distinct_queries() -> None:
    """Puzzles that others have taken are drawn again, and the two streams stay apart."""
    seen: set[str] = set()
    first = [puzzle.key for puzzle in draw_puzzles("test", 18, 0, seen)]
    again = [puzzle.key for puzzle in draw_puzzles("test", 18, 0, seen)]
    assert not set(first) & set(again)


def test_same_seed_same_bytes_and_test_does_not_depend_on_train(tmp_path: Path) -> None:
    one = make_data(tmp_path / "one", 18, 6, 18, seed=1)
    two = make_data(tmp_path / "two", 36, 6, 18, seed=1)
    other = make_data(tmp_path / "other", 18, 6, 18, seed=2)
    assert (one / "test.parquet").read_bytes() == (two / "test.parquet").read_bytes()
    assert contents(one, "test") == contents(two, "test")
    assert contents(one, "train") == contents(two, "train")[:18]
    assert set(contents(one, "test")).isdisjoint(contents(other, "test"))


def test_made_data_is_kept_and_other_data_is_not_overwritten(tmp_path: Path) -> None:
    out = make_data(tmp_path / "data", 2, 2, 2, seed=1)
    before = (out / "train.parquet").stat().st_mtime_ns
    assert make_data(out, 2, 2, 2, seed=1) == out
    assert (out / "train.parquet").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds other data"):
        make_data(out, 2, 2, 2, seed=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        make_data(tmp_path / "full", 2, 2, 2, seed=1)
    with pytest.raises(ValueError, match="negative"):
        make_data(tmp_path / "negative", -1, 2, 2, seed=1)


def test_of_many_who_draw_at_once_all_get_the_one(tmp_path: Path) -> None:
    """As runs do that are started together on a fresh clone."""
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: make_data(tmp_path / "data", 6, 2, 2, seed=1), range(4)))
    assert drawn == [tmp_path / "data"] * 4 and [path.name for path in tmp_path.iterdir()] == ["data"]
    assert len(contents(tmp_path / "data", "train")) == 6 and len(list((tmp_path / "data" / "images").iterdir())) == 10


def test_half_a_data_set_is_never_seen_and_another_s_is_never_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else draws the same, or other data, while we draw."""
    out = tmp_path / "data"
    write, others = visual_math.write_parquet, [dict(seed=1), dict(seed=2)]

    def faster(path: Path, rows: list) -> None:
        assert not (out / path.name).exists()
        write(path, rows)
        if path.name == "train.parquet":
            with monkeypatch.context() as patch:
                patch.setattr(visual_math, "write_parquet", write)
                make_data(out, 2, 0, 0, **others.pop(0))

    monkeypatch.setattr(visual_math, "write_parquet", faster)
    assert make_data(out, 2, 0, 0, seed=1) == out and len(contents(out, "train")) == 2
    shutil.rmtree(out)
    with pytest.raises(ValueError, match=r"data holds other data .*'seed': 2"):
        make_data(out, 2, 0, 0, seed=1)
    assert len(contents(out, "train")) == 2 and [path.name for path in tmp_path.iterdir()] == ["data"]


def test_data_are_drawn_into_an_empty_folder_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert make_data(tmp_path / "data", 2, 0, 0, seed=1) == tmp_path / "data"
    assert (tmp_path / "data").is_symlink() and len(contents(tmp_path / "disk", "train")) == 2


def test_a_used_up_world_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = make_puzzle("sum", 1, random.Random(0))
    monkeypatch.setattr(visual_math, "make_puzzle", lambda kind, level, rng: same)
    with pytest.raises(ValueError, match="no new sum query of level 1"):
        make_data(tmp_path / "data", 0, 0, 2, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_kind_named_twice_comes_twice_as_often(tmp_path: Path) -> None:
    queries, _ = load_queries(
        make_data(tmp_path / "quick", 60, 0, 0, seed=3, kinds=visual_math.WORLDS["visual_math_quick"]), "train"
    )
    kinds = Counter(query.category for query in queries)
    assert kinds == {kind: 30 if kind == "clock" else 6 for kind in KINDS}
    assert Counter(query.level for query in queries if query.category == "clock") == {1: 10, 2: 10, 3: 10}
    with pytest.raises(ValueError, match="holds other data"):  # of another mixture
        make_data(tmp_path / "quick", 60, 0, 0, seed=3)
    for kinds in (["clock", "dice"], []):
        with pytest.raises(ValueError, match=r"kinds of questions: at least one of count, .* got (clock, dice|none)"):
            make_data(tmp_path / "other", 6, 0, 0, kinds=kinds)


def test_contact_sheet_shows_all_cells(tmp_path: Path) -> None:
    path = contact_sheet(tmp_path / "docs" / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.width > 6 * 192
        assert sheet.height > 3 * 192


def test_the_committed_sample_is_whole_and_the_checksums_are_true() -> None:
    data = Path(__file__).parents[1] / "data"
    queries, dropped = load_queries(data / "visual_math")
    assert not dropped
    assert Counter((query.category, query.level) for query in queries) == dict.fromkeys(EVERY, 2)
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (data / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for _, name in listed} >= {"visual_math/test.parquet", "tiny-vlm/model.safetensors"}
    for checksum, name in listed:
        assert hashlib.sha256((data / name).read_bytes()).hexdigest() == checksum, name
