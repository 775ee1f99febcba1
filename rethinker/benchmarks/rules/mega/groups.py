"""MEGA-Bench's metrics on sets, sequences and dicts.

Quirk kept: the precision of an empty answer is 1 (nothing in it is wrong).
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

from rethinker.benchmarks.rules.mega.convert import read_items, to_dict, to_list, to_set
from rethinker.benchmarks.rules.mega.texts import exact

_IGNORED = str.maketrans("", "", " -\n\t_.")


def equal_sets(answer: Any, gold: Any) -> float:
    return float(to_set(answer) == to_set(gold))


def equal_sets_any_case(answer: Any, gold: Any) -> float:
    return float({item.upper() for item in to_set(answer)} == {item.upper() for item in to_set(gold)})


def equal_lines(answer: str, gold: str) -> float:
    """Sets of lines, in any case; ``\\n`` spelt out counts as a line break."""
    return float(_lines(answer) == _lines(gold))


def equal_comma_parts(answer: Any, gold: Any) -> float:
    """Sets of what stands between the commas, in any case."""
    return float(_lower(read_items(set, answer)) == _lower(read_items(set, gold)))


def jaccard(answer: Any, gold: Any) -> float:
    return 0.0 if answer is None else _jaccard(set(to_set(answer)), set(to_set(gold)))


def jaccard_any_case(answer: Any, gold: Any) -> float:
    """Strings in any case; tuples of strings without spaces, hyphens, dots and underscores as well."""
    if answer is None:
        return 0.0
    found, wanted = set(to_set(answer)), set(to_set(gold))
    if all(isinstance(item, str) for item in wanted):
        return _jaccard({str(item).lower() for item in found}, _lower(wanted)) if wanted else 0.0
    if all(isinstance(item, tuple) for item in wanted):
        return _jaccard(_plain(found), _plain(wanted))
    return 0.0


def chess_moves(answer: Any, gold: Any) -> float:
    """Jaccard index of moves, without their marks ``!`` and ``#``."""
    return 0.0 if answer is None else _jaccard(_moves(answer), _moves(gold))


def precision(answer: Any, gold: Any) -> float:
    if answer is None:
        return 0.0
    found = set(to_set(answer))
    return len(found & set(to_set(gold))) / len(found) if found else 1.0


def equal_sequences(answer: Any, gold: Any) -> float:
    return float(to_list(str(answer)) == to_list(gold))


def equal_sequences_any_case(answer: Any, gold: Any) -> float:
    found = [item.lower() if isinstance(item, str) else str(item) for item in to_list(str(answer))]
    return float(found == [item.lower() for item in to_list(gold)])


def sequence_accuracy(answer: Any, gold: Any) -> float:
    """Share of equal positions, in any case; 0 where the lengths differ."""
    found, wanted = to_list(answer), to_list(gold)
    if not wanted or len(found) != len(wanted):
        return 0.0
    return sum(_same_item(a, b) for a, b in zip(found, wanted, strict=True)) / len(wanted)


def common_prefix(answer: Any, gold: Any) -> float:
    """Length of the common beginning over the length of the gold answer."""
    found, wanted = to_list(answer), to_list(gold)
    length = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
    return (min(len(found), len(wanted)) if length is None else length) / len(wanted)


def equal_dicts(answer: Any, gold: Any) -> float:
    answer = to_dict(answer)
    return float(isinstance(answer, dict) and answer == to_dict(gold))


def dict_precision(answer: Any, gold: Any) -> float:
    answer, gold = to_dict(answer), to_dict(gold)
    if not isinstance(answer, dict) or not answer:
        return 0.0
    return sum(key in gold and exact(item, gold[key]) for key, item in answer.items()) / len(answer)


def dict_recall(answer: Any, gold: Any) -> float:
    answer, gold = to_dict(answer), to_dict(gold)
    if not isinstance(answer, dict):
        return 0.0
    return sum(exact(answer.get(key), item) for key, item in gold.items()) / len(gold)


def by_key(metric: Callable[[Any, Any], float]) -> Callable[[Any, Any], float]:
    """``metric`` on the values of two dicts, over the union of their keys (a missing value is an empty list)."""

    def mean_over_keys(answer: Any, gold: Any) -> float:
        answer, gold = to_dict(answer), to_dict(gold)
        if not isinstance(answer, dict):
            return 0.0
        keys = list(dict.fromkeys([*gold, *answer]))
        return sum(metric(answer.get(key, []), gold.get(key, [])) for key in keys) / len(keys)

    return mean_over_keys


def _jaccard(found: set[Any], wanted: set[Any]) -> float:
    union = found | wanted
    return len(found & wanted) / len(union) if union else 1.0


def _lines(text: str) -> set[str]:
    return {line.lower() for line in text.replace("\\n", "\n").split("\n")}


def _lower(items: Any) -> set[Any]:
    return {item.lower() if isinstance(item, str) else item for item in items}


def _plain(items: set[Any]) -> set[Any]:
    return {tuple(part.lower().translate(_IGNORED) for part in item) for item in items}


def _moves(text: str) -> set[str]:
    return {move.removesuffix("!").removesuffix("#") for move in read_items(set, text)}


def _same_item(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str):
        return bool(found.lower() == wanted.lower())
    return isinstance(wanted, Real) and isinstance(found, Real) and found == wanted
