"""Sums with whole-number answers, as JSON lines in ViRL39K's schema with no image: ``make real``.

    python experiments/real/make_data.py [--out FOLDER] [--train 2000] [--validation 48] [--test 120] [--seed 0]

Three kinds (levels 1 to 3), in turn: one product and a sum, two products, a sum in brackets. No question occurs twice,
in whatever split; the same seed gives the same questions, and the held-out splits do not depend on ``--train``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rethinker.rundir.atomic import atomic_write_text

OUT = Path("data", "generated", "real", "arithmetic")
SPLITS = ("test", "validation", "train")  # in the order in which they are drawn


def draw(generator: random.Random, level: int) -> tuple[str, int]:
    """A question of ``level`` (1 to 3) and its answer."""
    a, b, c, d = (generator.randint(*span) for span in ((12, 99), (3, 12), (12, 99), (3, 9)))
    plus = generator.random() < 0.5
    sign, signed = ("+", 1) if plus else ("-", -1)
    if level == 1:
        return f"What is {a} * {b} {sign} {c}?", a * b + signed * c
    if level == 2:
        return f"What is {a} * {b} {sign} {c} * {d}?", a * b + signed * c * d
    return f"What is ({a} {sign} {c}) * {d}?", (a + signed * c) * d


def rows(sizes: dict[str, int], seed: int) -> dict[str, list[dict[str, Any]]]:
    """``sizes[split]`` rows of every split."""
    generator, seen = random.Random(seed), set[str]()

    def fresh() -> Iterator[dict[str, Any]]:
        while True:
            level = len(seen) % 3 + 1
            question, answer = draw(generator, level)
            if question not in seen:
                seen.add(question)
                yield {
                    "question": question,
                    "answer": f"\\boxed{{{answer}}}",
                    "category": ("product", "two products", "brackets")[level - 1],
                    "source": "arithmetic",
                    "image": [],
                    "level": level,
                }

    questions = fresh()
    return {
        split: [{"qid": f"arithmetic-{seed}-{split}-{i:05}", **next(questions)} for i in range(sizes[split])]
        for split in SPLITS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    for split, size in (("train", 2000), ("validation", 48), ("test", 120)):
        parser.add_argument(f"--{split}", type=int, default=size, metavar="QUESTIONS")
    options = parser.parse_args()
    sizes = {split: getattr(options, split) for split in SPLITS}
    options.out.mkdir(parents=True, exist_ok=True)
    for split, part in rows(sizes, options.seed).items():
        atomic_write_text(options.out / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in part))
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
