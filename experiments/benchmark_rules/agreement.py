"""Do the re-stated rules give the verdicts that the benchmarks' own programs gave to real answers?

    python experiments/benchmark_rules/agreement.py answers.jsonl.gz [responses.jsonl.gz]

``answers``: JSON lines made from the outputs that the official repositories publish (MATH-V outputs/, MathVista
results/, MMMU eval/example_outputs/, MMMU-Pro output/, EMMA results/): benchmark, pid, type (choice, free, integer,
float, list, open), question with its options, gold (a letter for choices), gold_text (its option), answer (what the
official program extracted) and official_correct. ``responses``: benchmark, pid, response. The data are not part of this
repository.

Answers are put to the second half of each rule, and the verdicts compared. Responses are put to the whole rule; where
the answer it extracts is one that the official program extracted from some response to that problem, the verdicts are
compared, too.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from rethinker.benchmarks.rules import emma, mathvision, mathvista, mmmu
from rethinker.benchmarks.rules.outcome import Outcome

Record = dict[str, Any]
_OPTION = re.compile(r"(?m)^(?:\([A-Z]\)|[A-Z][.:]) ")


def read(path: str) -> Iterator[Record]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def options(record: Record) -> list[str]:
    _, listed, body = record["question"].rpartition("\nChoices:\n")
    return [text.rstrip("\n") for text in _OPTION.split(body)[1:]] if listed and record["type"] == "choice" else []


def decimals(record: Record) -> int | None:
    return len(record["gold"].partition(".")[2]) if record["type"] == "float" else None


def golds(record: Record) -> list[str]:
    try:
        several = json.loads(record["gold"])
    except ValueError:
        return [record["gold"]]
    return several if isinstance(several, list) else [record["gold"]]


def of_answer(record: Record) -> Outcome:
    """The verdict on what the official program extracted."""
    answer, gold = record["answer"], record["gold"]
    choice = record["type"] == "choice"
    if record["benchmark"] == "MathVision":
        right = mathvision.equal(gold, answer) or (choice and mathvision.equal(record["gold_text"], answer))
    elif record["benchmark"] == "EMMA":
        right = emma.equal(answer, gold) or emma.equal(answer, record["gold_text"])
    elif record["benchmark"] == "MathVista":
        gold = record["gold_text"] if choice else gold
        return mathvista.score_extraction(answer, gold, options(record), record["type"], decimals(record))
    elif choice:
        right = answer == gold
    else:  # MMMU, open: the readings of the response, as a list of texts
        accepted = [form for each in golds(record) for form in mmmu.normalize(each)]
        readings = [form for text in ast.literal_eval(answer) for form in (*mmmu.normalize(text), text)]
        texts = [form for form in accepted if isinstance(form, str)]
        right = any(
            reading in accepted if isinstance(reading, float) else any(text in reading for text in texts)
            for reading in readings
        )
    return Outcome(float(right), answer, "")


def of_response(record: Record, known: Record) -> Outcome:
    """The verdict of the whole rule; ``known``: an answer to the same problem, for its options and gold answer."""
    text, gold = record["response"], known["gold"]
    if record["benchmark"] == "MathVision":
        return mathvision.score(text, gold, options(known))
    if record["benchmark"] == "MMMU-Pro":
        return mmmu.score_pro(text, gold, options(known))
    if record["benchmark"] == "MathVista":
        gold = known["gold_text"] if known["type"] == "choice" else gold
        return mathvista.score(text, gold, options(known), known["type"], decimals(known))
    return (
        mmmu.score_choice(text, gold, options(known))
        if known["type"] == "choice"
        else mmmu.score_open(text, golds(known))
    )


def main(answers: str, responses: str | None = None) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    verdicts: dict[tuple[str, str], dict[str | None, bool]] = defaultdict(dict)
    known: dict[tuple[str, str], Record] = {}
    for record in read(answers):
        outcome = of_answer(record)
        official = outcome.score if outcome.guessed is None else outcome.guessed
        kind = f"{record['benchmark']} {record['type']}"
        agrees = bool(official) == record["official_correct"]
        counts[kind].update(answers=1, agree=agrees, guessed=outcome.guessed is not None, lucky=outcome.guessed == 1)
        if not agrees:
            print(f"{kind} {record['pid']}: {record['answer']!r} for {record['gold']!r}: {outcome}")
        problem = record["benchmark"], record["pid"]
        known[problem] = record
        verdicts[problem][outcome.extracted] = record["official_correct"]
    for record in read(responses) if responses else ():
        problem = record["benchmark"], record["pid"]
        outcome = of_response(record, known[problem])
        kind = f"{record['benchmark']} {known[problem]['type']}"
        found = outcome.extracted in verdicts[problem]
        same = found and bool(outcome.score) == verdicts[problem][outcome.extracted]
        unparsed = outcome.extracted is None
        counts[kind].update(responses=1, unparsed=unparsed, linked=found and not unparsed, same=same and not unparsed)
    columns = ("answers", "agree", "guessed", "lucky", "responses", "unparsed", "linked", "same")
    print(f"{'':20}" + "".join(f"{column:>10}" for column in columns))
    for kind, row in sorted(counts.items()):
        print(f"{kind:20}" + "".join(f"{row[column]:10}" for column in columns))


if __name__ == "__main__":
    main(*sys.argv[1:])
