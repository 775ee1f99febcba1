"""Small files in exactly the published schemas of the benchmarks: columns, types and quirks, with contents of our own.

``write_all`` makes a folder for each benchmark as a download of its hub repository is: names of files and folders,
images as bytes in rows. The contents are made up; the quirks are those of the real rows named in the comments.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT, TEXTS, WHOLE = pa.string(), pa.list_(pa.string()), pa.int64()
IMAGES_7 = {f"image_{k}": IMAGE for k in range(1, 8)}
IMAGES_5 = {f"image_{k}": IMAGE for k in range(1, 6)}


def schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


def struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


MATHVISTA = schema(
    pid=TEXT, question=TEXT, image=TEXT, decoded_image=IMAGE, choices=TEXTS, unit=TEXT, precision=pa.float64(),
    answer=TEXT, question_type=TEXT, answer_type=TEXT,
    metadata=struct(
        category=TEXT, context=TEXT, grade=TEXT, img_height=WHOLE, img_width=WHOLE, language=TEXT, skills=TEXTS,
        source=TEXT, split=TEXT, task=TEXT,
    ),
    query=TEXT,
)  # fmt: skip
MATHVERSE = schema(
    sample_index=TEXT, problem_index=TEXT, problem_version=TEXT, question=TEXT, image=IMAGE, answer=TEXT,
    question_type=TEXT, metadata=struct(split=TEXT, source=TEXT, subject=TEXT, subfield=TEXT), query_wo=TEXT,
    query_cot=TEXT, question_for_eval=TEXT,
)  # fmt: skip
MATHVERSE_TEXT = MATHVERSE.set(4, pa.field("image", TEXT))
MATHVISION = schema(
    id=TEXT, question=TEXT, options=TEXTS, image=TEXT, decoded_image=IMAGE, answer=TEXT, solution=TEXT, level=WHOLE,
    subject=TEXT,
)  # fmt: skip
MMMU = schema(
    id=TEXT, question=TEXT, options=TEXT, explanation=TEXT, **IMAGES_7, img_type=TEXT, answer=TEXT,
    topic_difficulty=TEXT, question_type=TEXT, subfield=TEXT,
)  # fmt: skip
MMMU_PRO = schema(
    id=TEXT, question=TEXT, options=TEXT, explanation=TEXT, **IMAGES_7, img_type=TEXT, answer=TEXT,
    topic_difficulty=TEXT, subject=TEXT,
)  # fmt: skip
MMMU_PRO_VISION = schema(id=TEXT, image=IMAGE, options=TEXT, answer=TEXT, subject=TEXT)
EMMA = schema(
    pid=TEXT, question=TEXT, options=TEXTS, answer=TEXT, **IMAGES_5, solution=TEXT, subject=TEXT, task=TEXT,
    category=TEXT, source=TEXT, type=TEXT, context=TEXT,
)  # fmt: skip


def picture(shade: int) -> dict[str, Any]:
    """An image as the hub stores it; each shade is another file."""
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), (shade, 128, 255 - shade)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(path: Path, columns: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    full = [{name: row.get(name) for name in columns.names} for row in rows]
    assert all(set(row) <= set(columns.names) for row in rows)
    pq.write_table(pa.Table.from_pylist(full, schema=columns), path)


def write_all(folder: Path) -> dict[str, Path]:
    """The folder of each benchmark by its name on the command line."""
    writers = {
        "mathvista": write_mathvista,
        "mathverse": write_mathverse,
        "mathvision": write_mathvision,
        "mmmu_pro": write_mmmu_pro,
        "mmmu": write_mmmu,
        "emma": write_emma,
    }
    for name, writer in writers.items():
        writer(folder / name)
    return {name: folder / name for name in writers}


def mathvista_row(pid: int, answer: str, **columns: Any) -> dict[str, Any]:
    choices = columns.get("choices")
    return {
        "pid": str(pid),
        "question": "What is shown?",
        "image": f"images/{pid}.jpg",
        "decoded_image": picture(pid),
        "answer": answer,
        "question_type": "multi_choice" if choices else "free_form",
        "answer_type": "text" if choices else "integer",
        "metadata": {
            "category": "math-targeted-vqa",
            "context": "geometry diagram",
            "grade": "high school",
            "img_height": 56,
            "img_width": 56,
            "language": "english",
            "skills": ["geometry reasoning", "arithmetic reasoning"],
            "source": "ours",
            "split": "testmini",
            "task": "geometry problem solving",
        },
        "query": f"Hint: ...\nQuestion: row {pid}",
        **columns,
    }


def mathvista_rows() -> list[dict[str, Any]]:
    return [
        mathvista_row(1, "97", choices=["102", "97", "107"]),
        mathvista_row(2, "18", choices=["6", "12", "18", "18"]),  # 587, 740, 781: one text twice
        mathvista_row(3, "4.40米", choices=["3.20米", "4.40米"], question="多少"),
        mathvista_row(4, "14", unit="years"),
        mathvista_row(5, "2.8", answer_type="float", precision=1.0),
        mathvista_row(6, "0.32", answer_type="float", precision=2.0),
        mathvista_row(7, "[2007, 2008]", answer_type="list"),  # 225, 506
    ]


def write_mathvista(folder: Path) -> None:
    write(folder / "data" / "testmini-00000-of-00001-725687bf7a18d64b.parquet", MATHVISTA, mathvista_rows())


def write_mathvista_repository(folder: Path) -> None:
    """As in the GitHub repository: an object of rows by pid, images as files, no column ``query``."""
    (folder / "data").mkdir(parents=True)
    (folder / "images").mkdir()
    rows = {}
    for row in mathvista_rows():
        (folder / row["image"]).write_bytes(row["decoded_image"]["bytes"])
        kept = {name: value for name, value in row.items() if name not in ("decoded_image", "query")}
        rows[row["pid"]] = {"choices": None, "unit": None, "precision": None, **kept}
    (folder / "data" / "testmini.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def mathverse_rows(problem: int, question: str, answer: str, kind: str) -> list[dict[str, Any]]:
    """The five versions of a problem."""
    letter = "the correct option letter, e.g., A, B, C, D" if kind == "multi-choice" else "the final value, e.g., 1"
    rows = []
    versions = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
    for number, version in enumerate(versions, start=1):
        seen = "" if version == "Vision Only" else question
        lead = "Please directly answer the question" if seen else "According to the question shown in the image, please"
        rows.append(
            {
                "sample_index": str(5 * (problem - 1) + number),
                "problem_index": str(problem),
                "problem_version": version,
                "question": seen,
                "image": picture(100 + 5 * problem + number),
                "answer": answer,
                "question_type": kind,
                "metadata": {"split": "testmini", "source": "ours", "subject": "Plane Geometry", "subfield": "Angle"},
                "query_wo": f"{lead} and provide {letter}." + (f"\nQuestion: {seen}" if seen else ""),
                "query_cot": f"Please first conduct reasoning.\nQuestion: {seen}",
                "question_for_eval": question,
            }
        )
    return rows


def write_mathverse(folder: Path) -> None:
    rows = [
        *mathverse_rows(1, "Find the angle.\nChoices:\nA:40°\nB:60°", "B", "multi-choice"),
        *mathverse_rows(2, "Find the bearing.", "118掳T", "free-form"),
        *mathverse_rows(3, "Find the area.", "Area $=9 \\pi \\mathrm{cm}^{2}$", "free-form"),
    ]
    write(folder / "testmini.parquet", MATHVERSE, rows)
    text = [{**row, "problem_version": "Text Only", "image": ""} for row in rows if row["sample_index"] in ("1", "6")]
    write(folder / "testmini_text_only.parquet", MATHVERSE_TEXT, text)


def write_mathvision(folder: Path) -> None:
    def row(number: int, answer: str, options: Sequence[str] = (), **columns: Any) -> dict[str, Any]:
        return {
            "id": str(number),
            "question": "How many?\n<image1>",
            "options": list(options),
            "image": f"images/{number}.jpg",
            "decoded_image": picture(200 + number),
            "answer": answer,
            "level": 1 + number % 5,
            "subject": "counting",
            **columns,
        }

    rows = [
        row(1, "C", "ABCDE"),
        row(2, "E", ("A", "B", "C", "E", "D"), question="Which <image1> or <image2>?"),  # 654: E is option D
        row(3, "B", ("$10^{\\circ}$", "12 cm", "1", "2", "3")),
        row(4, "$\\boxed{\\frac{16}{7}}$"),
        row(5, "11 ", solution="Count."),
    ]
    write(folder / "data" / "test-00000-of-00001-3532b8d3f1b4047a.parquet", MATHVISION, rows)
    write(folder / "data" / "testmini-00000-of-00001-f8ff70fcb2f29b1d.parquet", MATHVISION, rows[:2])


def mmmu_rows() -> list[dict[str, Any]]:
    return [
        {
            "id": "validation_Accounting_1",
            "question": "Which of <image 2> and <image 1>?",
            "options": "['$6', \"the firm's\", '<image 1>', '$9']",
            "image_1": picture(1),
            "image_2": picture(2),
            "image_3": picture(6),  # that no token names
            "img_type": "['Tables']",
            "answer": "B",
            "topic_difficulty": "Easy",
            "question_type": "multiple-choice",
            "subfield": "Managerial Accounting",
        },
        {
            "id": "validation_Accounting_2",
            "question": "Without a place for its image.",
            "options": "['Yes', 'No']",
            "image_1": picture(3),
            "answer": "A",
            "question_type": "multiple-choice",
        },
    ]


def write_mmmu(folder: Path) -> None:
    write(folder / "Accounting" / "validation-00000-of-00001.parquet", MMMU, mmmu_rows())
    write(folder / "Accounting" / "test-00000-of-00001.parquet", MMMU, [])
    open_rows = [
        {
            "id": "validation_Math_15",
            "question": "<image 1> What is the slope?",
            "options": "[]",
            "image_1": picture(4),
            "answer": "['24/7', '3.429']",  # several accepted answers
            "question_type": "open",
        },
        {
            "id": "validation_Math_16",
            "question": "<image 1> Which interval?",
            "options": "[]",
            "image_1": picture(5),
            "answer": "[0, 1]",  # a bracket that is an answer
            "question_type": "open",
        },
    ]
    write(folder / "Math" / "validation-00000-of-00001.parquet", MMMU, open_rows)


def write_mmmu_pro(folder: Path) -> None:
    ten = "['<image 2>', 'two', '<image 1>', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten']"
    standard = [
        {
            "id": "test_Art_Theory_7",
            "question": "Which of <image 3> belongs?",
            "options": ten,
            "image_1": picture(11),
            "image_2": picture(12),
            "image_3": picture(13),
            "answer": "J",
            "topic_difficulty": "Hard",
            "subject": "Art_Theory",
        },
        {
            "id": "validation_Accounting_29",  # a list in a list: one option, and the answer is B
            "question": "<image 1> Which?",
            "options": "[['A', 'B', 'Not enough information']]",
            "image_1": picture(14),
            "answer": "B",
            "subject": "Accounting",
        },
    ]
    vision = [
        {"id": row["id"], "image": picture(20 + k), "options": row["options"], "answer": row["answer"]}
        | {"subject": row["subject"]}
        for k, row in enumerate(standard)
    ]
    four = [row | {"options": "['1', '2', '3', '4']", "answer": "D"} for row in standard]
    name = "test-00000-of-00001.parquet"
    write(folder / "standard (10 options)" / name, MMMU_PRO, standard)
    write(folder / "standard (4 options)" / name, MMMU_PRO, four)
    write(folder / "vision" / name, MMMU_PRO_VISION, vision)


def write_emma(folder: Path) -> None:
    def row(pid: str, subject: str, answer: str, **columns: Any) -> dict[str, Any]:
        kind = "Multiple Choice" if columns.get("options") else "Open-Ended"
        return {
            "pid": pid,
            "question": "Which follows?",
            "options": [],
            "answer": answer,
            "image_1": picture(30),
            "subject": subject,
            "task": "",
            "category": "Pattern Inference",
            "source": "ours",
            "type": kind,
            "context": "",
            **columns,
        }

    rows = {
        "Math": [row("math_1", "Math", "7", question="<image_1> How many?")],
        "Physics": [row("phy_111", "Physics", "b", options=["up", "down"], context="See <image_1>.")],  # lower case
        "Chemistry": [
            row("chem_4", "Chemistry", "B", type="Multiple choice", question="<image_1> Which?")
            | {"options": ["<image_3>", "<image_2>"], "image_2": picture(31), "image_3": picture(32)},
        ],
        "Coding": [
            row("coding_1", "Coding", "A", options=["red", "blue"], category="Color; Layout", task="Code Choose Vis")
        ],
    }
    for subject, its_rows in rows.items():
        write(folder / subject / "test-00000-of-00001.parquet", EMMA, its_rows)
