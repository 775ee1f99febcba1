"""MEGA-Bench's metrics on strings. Each takes the answer as read and the gold answer and returns a score in [0, 1].

Quirks kept: where the gold answer is one letter, a longer answer counts by its first letter ("Apple" for A, "(B) it
is" for B); BLEU and GLEU take the gold answer as the hypothesis and the response as the reference.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

from rethinker.benchmarks.rules.mega.convert import to_list
from rethinker.benchmarks.rules.mega.reading import verbatim_block

EXTRA = "pip install 'rethinker[mega]'"
_FIRST_LETTER = re.compile(r"\(?([A-Za-z])")
_IGNORED = str.maketrans("", "", " -\n\t.")


def exact(answer: Any, gold: Any) -> float:
    answer, gold = str(answer), str(gold)
    if len(gold) == 1 and gold.isalpha() and len(answer) > 1 and (first := _FIRST_LETTER.match(answer)):
        answer = first[1]
    return float(answer == gold)


def exact_any_case(answer: Any, gold: Any) -> float:
    return exact(answer.lower(), gold.lower()) if isinstance(answer, str) else 0.0


def exact_code_result(answer: Any, gold: Any) -> float:
    """The gold answer stands in a code block."""
    return exact(answer, verbatim_block(gold))


def simple(answer: Any, gold: Any) -> float:
    """Equal without case, spaces, hyphens and dots ("1.5" is "15": official)."""
    return exact(str(answer).translate(_IGNORED).lower(), str(gold).translate(_IGNORED).lower())


def any_of_phrases(answer: Any, gold: Any) -> float:
    """One of the accepted phrases, `simple`."""
    return float(any(simple(answer, phrase) for phrase in to_list(str(gold).replace("，", ","))))


def near(answer: Any, gold: Any) -> float:
    """Damerau-Levenshtein similarity without case, accents and articles; 0 below 0.9."""
    if not isinstance(answer, str) or not isinstance(gold, str):
        return 0.0
    return _similarity(_plain(answer), _plain(gold), 0.9)


def similarity(answer: Any, gold: Any) -> float:
    """Normalised Damerau-Levenshtein similarity."""
    return _similarity(answer, gold, 0.0) if isinstance(answer, str) else 0.0


def bleu(answer: Any, gold: Any) -> float:
    """BLEU of the gold answer against the response (sacrebleu's defaults)."""
    if isinstance(answer, str) and isinstance(gold, str):
        answer, gold = [answer], [gold]
    elif not isinstance(answer, (list, tuple)) or not isinstance(gold, (list, tuple)):
        return 0.0
    return float(_library("sacrebleu").corpus_bleu(list(gold), [list(answer)]).score) / 100


def gleu_chinese(answer: Any, gold: Any) -> float:
    """GLEU over jieba's words, with the response as the reference."""
    if not isinstance(answer, str) or not isinstance(gold, str):
        return 0.0
    cut = _library("jieba").cut_for_search
    return float(_library("nltk.translate.gleu_score").sentence_gleu([list(cut(answer))], list(cut(gold))))


def libraries(metric: str) -> tuple[str, ...]:
    """The optional modules that a metric of this file needs."""
    return {
        "near_str_match": ("rapidfuzz", "unidecode"),
        "normalized_similarity_damerau_levenshtein": ("rapidfuzz",),
        "bleu": ("sacrebleu",),
        "gleu_cn": ("jieba", "nltk"),
    }.get(metric, ())


def _plain(text: str) -> str:
    words = [word for word in text.split(" ") if word.lower() not in ("the", "a")]
    return str(_library("unidecode").unidecode(" ".join(words))).lower()


def _similarity(answer: str, gold: str, cutoff: float) -> float:
    measure = _library("rapidfuzz.distance.DamerauLevenshtein")
    return float(measure.normalized_similarity(answer, gold, score_cutoff=cutoff))


@cache
def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"MEGA-Bench's text metrics need {name.split('.')[0]}: {EXTRA}") from error
