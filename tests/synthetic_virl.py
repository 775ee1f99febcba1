"""A data set in ViRL39K's published form: 39Krelease.parquet and images.zip, with its quirks, made from a seed.

The columns, their types, the eight categories with their shares (paper, Fig. 8), the sources, the names of images and
the rule of the rates (the 7B's is -1 where the 32B is not always right) are the release's; questions and pictures are
made up. ``python tests/synthetic_virl.py FOLDER [ROWS]`` writes one.
"""

from __future__ import annotations

import io
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

ROWS = 39_000
CATEGORIES = {  # share in percent
    "(GradeSchool) Non-Geo Math": 38.33,
    "(GradeSchool) Geometric": 27.35,
    "Tables/Diagrams/Charts": 15.92,
    "(GradeSchool) Science": 8.95,
    "Spatial Reasoning": 4.94,
    "Broader STEM Topics": 2.46,
    "Social Science": 1.74,
    "Commonsense": 0.31,
}
SOURCES = ("Processed", "MMK12", "K12", "MMMath", "M3CoT")
TEXT_ONLY = "DeepScaleR"  # the source of rows without images
PICTURES = 400  # distinct ones
UNREADABLE = "\\boxed{\\left\\{ x + y = 3 \\right."  # an unbalanced brace, as in one row of the release
SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("answer", pa.string()),
        ("PassRate_32BTrained", pa.float64()),
        ("PassRate_7BBase", pa.float64()),
        ("category", pa.string()),
        ("source", pa.string()),
        ("qid", pa.string()),
        ("image", pa.list_(pa.string())),
    ]
)


def write_virl(folder: Path, rows: int = ROWS, seed: int = 0) -> dict[str, str]:
    """Write the data set; returns the rows that cannot be used: qid and reason."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    pictures = [_picture(rng) for _ in range(min(PICTURES, rows))]
    bad: dict[str, str] = {}
    table = []
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for index in range(rows):
            row = _row(rng, index)
            for name in row["image"]:
                archive.writestr(name, rng.choice(pictures))
            table.append(row)
        for step, reason in ((rows // 7, "unparsable gold answer"), (rows // 5, "missing image")):
            row = table[step]
            bad[row["qid"]] = reason
            row |= {"answer": UNREADABLE} if "gold" in reason else {"image": ["images/Processed-none-0.jpg"]}
        row = table[rows // 3]
        archive.writestr("images/Processed-cut-0.jpg", pictures[0][:-200])
        row |= {"image": ["images/Processed-cut-0.jpg"], "question": "<image>\nWhat is cut?"}
        bad[row["qid"]] = "unreadable image"
    pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), folder / "39Krelease.parquet")
    return bad


def _row(rng: random.Random, index: int) -> dict[str, Any]:
    (category,) = rng.choices(list(CATEGORIES), list(CATEGORIES.values()))
    text = category == "(GradeSchool) Non-Geo Math" and rng.random() < 0.4
    source = TEXT_ONLY if text else rng.choice(SOURCES)
    count = 0 if text else rng.choices((1, 2, 3), (0.95, 0.04, 0.01))[0]
    big = 1.0 if rng.random() < 0.5 else rng.randrange(8) / 8
    seven = -1.0 if big < 1.0 else rng.choices(range(9), (3, *[2] * 8))[0] / 8
    choices = "\nChoices:\n(A) even\n(B) odd\n(C) prime\n(D) none" if rng.random() < 0.4 else ""
    question = (
        "<image>" * count + "\n" * bool(count) + f"What follows from figure {index}? " + "Explain. " * 20 + choices
    )
    return {
        "question": question,
        "answer": f"\\boxed{{{_answer(rng, bool(choices))}}}",
        "PassRate_32BTrained": big,
        "PassRate_7BBase": seven,
        "category": category,
        "source": source,
        "qid": f"{source}-{index}",
        "image": [f"images/{source}-{index}-{number}.jpg" for number in range(count)],
    }


def _answer(rng: random.Random, letter: bool) -> str:
    if letter:
        return rng.choice("ABCD")
    kinds = (
        str(rng.randint(0, 400)),
        f"{rng.randint(1, 900) / 10}",
        f"\\frac{{{rng.randint(1, 40)}}}{{{rng.randint(2, 41)}}}",
        f"{rng.randint(2, 60)}^\\circ",
        f"{rng.randint(2, 30)}\\sqrt{{{rng.randint(2, 30)}}}",
    )
    return rng.choices(kinds, (6, 2, 1, 2, 1))[0]


def _picture(rng: random.Random) -> bytes:
    image = Image.new("RGB", (rng.randint(120, 700), rng.randint(90, 500)), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.randrange(image.width), rng.randrange(image.height)
        colour = tuple(rng.randrange(256) for _ in range(3))
        pen.ellipse([x, y, x + rng.randint(10, 120), y + rng.randint(10, 120)], fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


if __name__ == "__main__":
    print(write_virl(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROWS))
