"""Two foreign data sets, with columns of their own, for the tiny VLM: easy-VQA, and sums of handwritten digits.

    pip install -e '.[foreign]'
    python experiments/foreign/make_foreign.py [--out FOLDER] [--train 3000] [--validation 96] [--test 240] [--seed 0]

easy_vqa/: questions about one coloured shape, from the package easy-vqa (MIT licence). The tiny VLM writes digits only,
so the possible answers are numbered behind the question. ``questions-<split>.parquet`` has the package's words and
these numbers; the pictures are in images.zip. ``colours-<split>.parquet`` are those about colours.

digits/: two of scikit-learn's handwritten digits (8 x 8 pixels, enlarged) are to be added or subtracted, laid out as
the visual-math world's sums. ``sums-<split>.parquet`` has them as bytes, as Hugging Face's data sets do; in
``half-<split>.parquet`` one of both is printed, as in that world; in ``one-<split>.parquet`` a printed 0 is added to
one, so that all ten results are equally common.

Test queries show pictures of their own: of easy-VQA the second of the package's two parts, of the digits the last of
three parts of the 1,797. The digits' validation does too; easy-VQA's asks questions of the first part that are not
trained on, about pictures that may be. The configs beside this file map the columns (``data.columns``).
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import easy_vqa
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from rethinker.datasets.world.drawing import blank, jitter, write

OUT = Path("data", "generated", "foreign")
SPLITS = ("train", "validation", "test")
ANSWERS = {  # of easy-VQA, in the order of their numbers
    "yes or no": ("yes", "no"),
    "shape": ("circle", "rectangle", "triangle"),
    "colour": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
}
DIGIT = 22  # pixels, each side
PARTS = {"train": (0, 1300), "validation": (1300, 1400), "test": (1400, 1797)}  # of scikit-learn's digits
Rows = dict[str, list[dict[str, Any]]]


def easy_vqa_rows(sizes: dict[str, int], rng: random.Random) -> Rows:
    """Questions of every split, equally many of the three kinds."""
    whole = {"train": easy_vqa.get_train_questions(), "test": easy_vqa.get_test_questions()}
    pools: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for part, (questions, answers, images) in whole.items():
        kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ANSWERS}
        for index, (question, answer, image) in enumerate(zip(questions, answers, images, strict=True)):
            kind = next(kind for kind, words in ANSWERS.items() if answer in words)
            kinds[kind].append(
                {
                    "id": f"{part}-{index}",
                    "picture": f"{part}-{image}",
                    "question": question,
                    "answer": answer,
                    "kind": kind,
                    "choices": " ".join(f"{number} {word}" for number, word in enumerate(ANSWERS[kind], 1)),
                    "number": 1 + ANSWERS[kind].index(answer),
                }
            )
        for rows in kinds.values():
            rng.shuffle(rows)
        pools[part] = kinds
    found: Rows = {}
    for split in SPLITS:  # validation too is of the first part: other questions, on pictures that may be trained on
        pool = pools["test" if split == "test" else "train"]
        found[split] = [pool[kind].pop() for kind in itertools.islice(itertools.cycle(ANSWERS), sizes[split])]
    return found


def write_easy_vqa(folder: Path, rows: Rows) -> None:
    """The tables, and the pictures that they name."""
    paths = {"train": easy_vqa.get_train_image_paths(), "test": easy_vqa.get_test_image_paths()}
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name in sorted({row["picture"] for part in rows.values() for row in part}):
            part, _, number = name.partition("-")
            archive.write(paths[part][int(number)], f"images/{name}.png")
    for split, part in rows.items():
        pq.write_table(pa.Table.from_pylist(part), folder / f"questions-{split}.parquet")
        colours = [row for row in part if row["kind"] == "colour"]
        pq.write_table(pa.Table.from_pylist(colours), folder / f"colours-{split}.parquet")


def sums(kind: str, split: str, size: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows of ``<kind>-<split>.parquet``: "sums", "half" or "one"."""
    data = load_digits()
    places = range(*PARTS[split])
    for _ in range(size):
        chosen = rng.sample(places, 2)
        sign = "+" if kind == "one" else rng.choice("+-")
        first, second = sorted(chosen, key=lambda place: -data.target[place]) if sign == "-" else chosen
        image, pen = blank(rng)
        values = {place: int(data.target[place]) for place in chosen}
        printed = rng.choice((first, second)) if kind == "half" else second if kind == "one" else None
        if kind == "one":
            values[second] = 0
        for place, y in ((first, 16), (second, 46)):
            if place == printed:
                write(pen, 38 + jitter(rng), y + jitter(rng), str(values[place]), 16)
                continue
            ink = 255 - (data.images[place] * (255 / 16)).astype(np.uint8)
            digit = Image.fromarray(ink).resize((DIGIT, DIGIT), Image.Resampling.BICUBIC)
            corner = (38 - DIGIT // 2 + jitter(rng), y - DIGIT // 2 + jitter(rng))
            tint = Image.new("RGB", digit.size, "black")
            image.paste(tint, corner, Image.fromarray(255 - np.asarray(digit)))
        write(pen, 12 + jitter(rng), 31 + jitter(rng), sign, 16)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        a, b = values[first], values[second]
        yield {
            "picture": {"bytes": buffer.getvalue(), "path": None},
            "digits": [a, b],
            "sign": sign,
            "result": a + b if sign == "+" else a - b,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    for split, size in zip(SPLITS, (3000, 96, 240), strict=True):
        parser.add_argument(f"--{split}", type=int, default=size, metavar="QUERIES")
    options = parser.parse_args()
    sizes = {split: getattr(options, split) for split in SPLITS}
    for name in ("easy_vqa", "digits"):
        (options.out / name).mkdir(parents=True, exist_ok=True)
    write_easy_vqa(options.out / "easy_vqa", easy_vqa_rows(sizes, random.Random(f"easy-vqa/{options.seed}")))
    for split, size in sizes.items():
        for kind in ("sums", "half", "one"):
            rng = random.Random(f"digits/{options.seed}/{split}" + ("" if kind == "sums" else f"/{kind}"))
            table = pa.Table.from_pylist(list(sums(kind, split, size, rng)))
            pq.write_table(table, options.out / "digits" / f"{kind}-{split}.parquet")
    print(f"written: {options.out / 'easy_vqa'}, {options.out / 'digits'}")


if __name__ == "__main__":
    main()
