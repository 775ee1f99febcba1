"""The adapters on files in the published schemas: items, images in their order, prompts of both protocols, verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import benchmark_schemas as schemas
import pyarrow.parquet as pq
import pytest
from letters import POLICY
from toy_benchmark import Engine, asking, settings

from rethinker import cli
from rethinker.benchmarks.base import Item, Protocol
from rethinker.benchmarks.registry import BENCHMARKS
from rethinker.benchmarks.rescoring import rescore
from rethinker.benchmarks.running import run_tasks
from rethinker.benchmarks.sources import Source
from rethinker.benchmarks.tasks import load_task
from rethinker.rundir.atomic import read_json


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield schemas.write_all(tmp_path_factory.mktemp("benchmarks"))


def read(folders: dict[str, Path], name: str, split: str) -> dict[str, Item]:
    items = list(BENCHMARKS[name].items(Source(str(folders[name])), split))
    assert len({item.qid for item in items}) == len(items)
    return {item.qid: item for item in items}


def shades(item: Item) -> list[int]:
    """The images by the shade that ``benchmark_schemas.picture`` gave them."""
    from PIL import Image

    shown = []
    for path in item.images:
        with Image.open(path) as image:
            shown.append(image.convert("RGB").getpixel((0, 0))[0])  # type: ignore[index]
    return shown


def test_every_item_has_a_place_for_its_images_and_a_right_answer(folders: dict[str, Path]) -> None:
    counts = {}
    for name in folders:
        benchmark = BENCHMARKS[name]
        for split in benchmark.splits:
            if (name, split) == ("emma", "mini"):
                continue  # another data set with the same schema
            items = read(folders, name, split)
            counts[f"{name}:{split}"] = len(items)
            for item in items.values():
                for protocol in benchmark.protocols:
                    text = benchmark.prompt(item, protocol)
                    assert text.strip() and text.count("<image>") <= len(item.images), (item.qid, protocol)
                    # (4) is unanswerable by the published rule, which does not clean its gold answer.
                    right = benchmark.score(item, f"\\boxed{{{item.golds[0]}}}\n\nAnswer: {item.golds[0]}", protocol)
                    assert right.correct or (name, item.qid, protocol) in UNANSWERABLE, (item, protocol, right)
                    wrong = benchmark.score(item, "I cannot see it.", protocol)
                    assert wrong.score == 0 and not wrong.correct and wrong.reason
                assert all(values and all(values) for group, values in item.groups.items() if group != "task")
    assert counts == {
        "mathvista:testmini": 7,
        "mathverse:testmini": 15,
        "mathverse:testmini_text_only": 2,
        "mathvision:test": 5,
        "mathvision:testmini": 2,
        "mmmu_pro:overall": 4,
        "mmmu_pro:standard10": 2,
        "mmmu_pro:vision": 2,
        "mmmu_pro:standard4": 2,
        "mmmu:validation": 4,
        "emma:full": 4,
    }


UNANSWERABLE = {("mathvision", "4", "official")}


def test_mathvista(folders: dict[str, Path], tmp_path: Path) -> None:
    benchmark = BENCHMARKS["mathvista"]
    items = read(folders, "mathvista", "testmini")
    assert items["1"].golds == ("B",) and items["2"].golds == ("C", "D") and items["5"].golds == ("2.8",)
    assert items["4"].question == "What is shown? (Unit: years)" and shades(items["4"]) == [4]
    assert items["1"].groups["skills"] == ("geometry reasoning", "arithmetic reasoning")
    assert benchmark.prompt(items["1"], "official") == "Hint: ...\nQuestion: row 1"
    assert benchmark.prompt(items["1"], "boxed") == "What is shown?\n(A) 102\n(B) 97\n(C) 107"
    for protocol in benchmark.protocols:
        for answer in ("C", "D", "18"):  # either letter of the same text
            assert benchmark.score(items["2"], f"\\boxed{{{answer}}}", protocol).correct, (answer, protocol)
        assert benchmark.score(items["5"], "\\boxed{2.83}", protocol).correct  # rounds to one decimal
        assert not benchmark.score(items["5"], "\\boxed{2.86}", protocol).correct
        assert not benchmark.score(items["6"], "\\boxed{0.33}", protocol).correct
    guess = benchmark.score(items["1"], "\\boxed{96}", "official")
    assert (guess.score, guess.extracted, guess.guessed) == (0, None, 1.0)

    schemas.write_mathvista_repository(tmp_path / "MathVista")
    stored = {item.qid: item for item in benchmark.items(Source(str(tmp_path / "MathVista")), "testmini")}
    assert list(stored) == list(items)
    for qid, item in stored.items():
        assert (item.golds, item.options, shades(item)) == (items[qid].golds, items[qid].options, shades(items[qid]))
    assert benchmark.prompt(stored["1"], "official") == (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: What is shown?\nChoices:\n(A) 102\n(B) 97\n(C) 107"
    )
    assert benchmark.prompt(stored["5"], "official") == (
        "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the "
        "final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: What is shown?"
    )


def test_mathverse(folders: dict[str, Path]) -> None:
    benchmark = BENCHMARKS["mathverse"]
    items = read(folders, "mathverse", "testmini")
    assert [item.cluster for item in items.values()] == ["1"] * 5 + ["2"] * 5 + ["3"] * 5
    assert items["5"].groups["version"] == ("Vision Only",) and len(items["5"].images) == 1
    assert benchmark.prompt(items["1"], "official").endswith("\nQuestion: Find the angle.\nChoices:\nA:40°\nB:60°")
    assert benchmark.prompt(items["5"], "boxed") == "Answer the question shown in the image."
    assert benchmark.prompt(items["5"], "official").startswith("According to the question shown in the image")
    for protocol in benchmark.protocols:
        for answer in ("B", "60^\\circ", "60"):  # the options are known though the question is in the image
            assert benchmark.score(items["5"], f"\\boxed{{{answer}}}", protocol).correct, (answer, protocol)
        assert benchmark.score(items["6"], "\\boxed{118^\\circ}", protocol).correct
        assert benchmark.score(items["11"], "\\boxed{9\\pi}", protocol).correct
    assert all(not item.images for item in read(folders, "mathverse", "testmini_text_only").values())


def test_mathvision(folders: dict[str, Path]) -> None:
    benchmark = BENCHMARKS["mathvision"]
    items = read(folders, "mathvision", "test")
    subject, level = (items["3"].groups[name][0] for name in ("subject", "level"))
    assert items["3"].groups["subject_level"] == (f"{subject}, level {level}",)
    assert not benchmark.score(items["4"], "\\boxed{\\frac{16}{7}}", "official").correct
    assert benchmark.score(items["4"], "\\boxed{\\frac{16}{7}}", "boxed").correct
    assert not benchmark.score(items["3"], "\\boxed{12 cm}", "official").correct
    assert benchmark.score(items["3"], "\\boxed{12 cm}", "boxed").correct


def test_images_follow_the_tokens(folders: dict[str, Path]) -> None:
    mmmu = read(folders, "mmmu", "validation")
    first = mmmu["validation_Accounting_1"]
    assert first.question == "Which of <image> and <image>?" and first.options[2] == "<image>"
    assert shades(first) == [6, 2, 1, 1]  # one that no token names comes first, one that is named twice is shown twice
    assert shades(mmmu["validation_Accounting_2"]) == [3] and "<image>" not in mmmu["validation_Accounting_2"].question
    pro = read(folders, "mmmu_pro", "overall")
    assert shades(pro["standard10-test_Art_Theory_7"]) == [13, 12, 11]
    assert shades(pro["vision-test_Art_Theory_7"]) == [20]
    emma = read(folders, "emma", "full")
    assert shades(emma["chem_4"]) == [30, 32, 31]
    assert emma["phy_111"].question == "See <image>.\nWhich follows?"


def test_mmmu(folders: dict[str, Path]) -> None:
    benchmark = BENCHMARKS["mmmu"]
    items = read(folders, "mmmu", "validation")
    assert items["validation_Accounting_1"].options == ("$6", "the firm's", "<image>", "$9")
    assert items["validation_Math_15"].golds == ("24/7", "3.429")
    assert items["validation_Math_16"].golds == ("[0, 1]",)
    assert items["validation_Math_15"].groups == {"domain": ("Science",), "subject": ("Math",)}
    assert benchmark.prompt(items["validation_Accounting_2"], "official") == (
        "Without a place for its image.\n(A) Yes\n(B) No\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert benchmark.prompt(items["validation_Math_15"], "official") == (
        "<image> What is the slope?\nAnswer the question using a single word or phrase."
    )
    for protocol in benchmark.protocols:
        for answer in ("24/7", "3.429"):
            assert benchmark.score(items["validation_Math_15"], f"\\boxed{{{answer}}}", protocol).correct
    draw = benchmark.score(items["validation_Accounting_1"], "No.", "official")
    assert (draw.score, draw.extracted, draw.guessed) == (0, None, 0.25)


def test_mmmu_pro(folders: dict[str, Path]) -> None:
    benchmark = BENCHMARKS["mmmu_pro"]
    items = read(folders, "mmmu_pro", "overall")
    assert benchmark.mean_over == "part" and [item.groups["part"] for item in items.values()] == [
        ("standard10",), ("standard10",), ("vision",), ("vision",),
    ]  # fmt: skip
    assert items["vision-test_Art_Theory_7"].cluster == items["standard10-test_Art_Theory_7"].cluster
    broken = items["standard10-validation_Accounting_29"]
    assert broken.options == ("A", "B", "Not enough information")  # the list in the list is taken out
    assert benchmark.score(broken, "Answer: B", "official").correct
    standard = benchmark.prompt(items["standard10-test_Art_Theory_7"], "official")
    assert standard.startswith("Which of <image> belongs?\nA. <image>\nB. two\n")
    assert "\nJ. ten\nAnswer the preceding multiple choice question. The last line" in standard
    vision = items["vision-test_Art_Theory_7"]
    assert benchmark.prompt(vision, "official").startswith("Write out the multiple-choice question in the image")
    # The options of the vision part are in its image alone; the grader knows their texts.
    assert benchmark.prompt(vision, "boxed") == "Answer the question shown in the image."
    assert benchmark.score(vision, "\\boxed{ten}", "boxed").correct
    assert not benchmark.score(vision, "\\boxed{two}", "boxed").correct


def test_emma(folders: dict[str, Path]) -> None:
    benchmark = BENCHMARKS["emma"]
    items = read(folders, "emma", "full")
    assert items["phy_111"].golds == ("B",) and benchmark.score(items["phy_111"], "\\boxed{B}", "boxed").correct
    assert items["coding_1"].groups["category"] == ("Coding: Color", "Coding: Layout")
    assert items["coding_1"].groups["task"] == ("Coding: Code Choose Vis",) and items["math_1"].groups["task"] == ()
    assert benchmark.prompt(items["coding_1"], "official") == (
        "\nWhich follows?\nA: red\nB: blue\n\nAnswer with the option's letter from the given choices and put the "
        'letter in one "\\boxed{}". Please solve the problem step by step.'
    )
    assert benchmark.score(items["chem_4"], "\\boxed{<image_2>}", "official").correct  # the option as the data have it
    assert benchmark.prompt(items["math_1"], "boxed") == "<image> How many?"


def test_rows_that_are_not_of_the_schema_are_named(tmp_path: Path) -> None:
    def items(name: str, split: str) -> list[Item]:
        return list(BENCHMARKS[name].items(Source(str(tmp_path)), split))

    schemas.write(
        tmp_path / "a" / "testmini.parquet", schemas.MATHVISTA, [schemas.mathvista_row(1, "9", choices=["8"])]
    )
    with pytest.raises(ValueError, match="mathvista 1: the answer '9' is none of the choices"):
        items("mathvista", "testmini")
    row = {**schemas.mmmu_rows()[0], "options": "['a', __import__('os')]"}
    schemas.write(tmp_path / "b" / "validation.parquet", schemas.MMMU, [row])
    with pytest.raises(ValueError, match=r"validation_Accounting_1: the options .* are no Python list"):
        items("mmmu", "validation")
    schemas.write(tmp_path / "c" / "test.parquet", schemas.MMMU_PRO_VISION, [{"id": "test_Art_1", "options": "['a']"}])
    with pytest.raises(ValueError, match="no column 'question'"):
        items("mmmu_pro", "standard10")


def right(item: Item) -> str:
    return f"\\boxed{{{item.golds[0]}}}\n\nAnswer: {item.golds[0]}"


@pytest.mark.parametrize("protocol", ["official", "boxed"])
def test_all_are_run_counted_and_scored_again(folders: dict[str, Path], tmp_path: Path, protocol: Protocol) -> None:
    values = {}
    for name, folder in folders.items():
        task = load_task(name, {name: str(folder)})
        answers = {item.qid: right(item) if number % 2 else "No idea." for number, item in enumerate(task.items)}
        model = Engine(lambda qid, index, answers=answers: answers[qid])
        how = asking(protocol=protocol)
        run_tasks(tmp_path / name, [task], how, settings(how), lambda left, model=model: (POLICY, model, {}), chunk=3)
        table = tmp_path / name / f"{task.name}.parquet"
        found, rows = read_json(table.with_suffix(".json")), pq.read_table(table).to_pylist()
        plain = found["modes"]["plain"]["greedy"]
        values[name] = (plain["score"]["value"], plain["with_guesses"]["value"])
        assert [row["text"] for row in rows] == list(answers.values()) and not found["unsupported"]
        rescore(tmp_path / name)
        assert pq.read_table(table).to_pylist() == rows
    exact = {name: pytest.approx(value) for name, value in BY_HAND[protocol].items()}
    assert values == exact


# Every second item is right. Guesses: the choice nearest to "No idea" is wrong in both of MathVista's; of MMMU's
# letters 1 in 4 (its other wrong answer is to an open question); of MMMU-Pro's 1 in 10. (4) of MathVision cannot be
# right by its rule.
BY_HAND = {
    "official": {
        "mathvista": (3 / 7, 3 / 7),
        "mathverse": (7 / 15, 7 / 15),
        "mathvision": (1 / 5, 1 / 5),
        "mmmu_pro": (1 / 2, (1.1 / 2 + 1.1 / 2) / 2),
        "mmmu": (2 / 4, 2.25 / 4),
        "emma": (2 / 4, 2 / 4),
    },
    "boxed": {
        "mathvista": (3 / 7, 3 / 7),
        "mathverse": (7 / 15, 7 / 15),
        "mathvision": (2 / 5, 2 / 5),
        "mmmu_pro": (1 / 2, 1 / 2),
        "mmmu": (2 / 4, 2 / 4),
        "emma": (2 / 4, 2 / 4),
    },
}


@pytest.mark.long
def test_all_with_a_real_tiny_model(folders: dict[str, Path], tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = [f"--data={name}={folder}" for name, folder in folders.items()]
    options = ("rollout.max_new_tokens=16", "model.min_pixels=3136", "model.max_pixels=3136", "name=toy")
    for protocol in ("official", "boxed"):
        command = ["evaluate", str(tiny_folder), "--benchmarks", ",".join(folders), *places, "--protocol", protocol]
        assert cli.main([*command, "--engine", "transformers", *options]) == 0
        found = read_json(tmp_path / "runs" / "toy" / "benchmarks" / protocol / "summary.json")["benchmarks"]
        assert {name: part["modes"]["plain"]["score"]["n"] for name, part in found.items()} == {
            "mathvista-testmini": 7, "mathverse-testmini": 15, "mathvision-test": 5, "mmmu_pro-overall": 4,
            "mmmu-validation": 4, "emma-full": 4,
        }  # fmt: skip
