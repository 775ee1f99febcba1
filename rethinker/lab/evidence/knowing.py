"""Could a policy know that its first look is wrong? What tells wrong from right ones, and what a rule by it would gain.

From the table ``knowing`` (``experiments/evidence/knowing.py`` makes it): a row per first look, with its verdict, that
of a second look forced behind it, the tokens of both, and scores, larger where a second look seems more worthwhile. All
that was fitted was fitted on other queries. Not in arXiv:2504.08837.

Intervals are percentiles of a bootstrap over the queries of each kind and level: no training and no fit is repeated.

Shapes: D draws, N first looks; W wrong and R right ones of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from rethinker.lab.analysis.choice import CELLS
from rethinker.lab.evidence.bootstrap import SEED
from rethinker.lab.evidence.tables import KNOWING, Tables
from rethinker.lab.evidence.words import markdown, picture
from rethinker.lab.figures import evidence as figures
from rethinker.lab.figures.style import LIGHT, Drawing, NoData, Theme

GRID = "knowing"  # in the table's column ``grid``
DRAWS = 1000
# Of policies, stages of experiments/tiny.yaml; others come last.
ORDER = ("base", "vl-reasoner", "vl-rethinker", "vl-chooser")
SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # of first looks that get a second one
SHOWN = (0.0, 0.4, 0.6, 0.8, 1.0)  # of SHARES, in the page's table
HARDLY = 0.01  # a policy that looks twice less often has no choice to be judged
SCORES = {
    "looks": "its odds of a second look",
    "probe": "a linear probe of its states there",
    "improbability": "how improbable its answer was",
}
RULES = {  # who is looked at twice first
    "by_kind": "kind of question",
    "by_level": "kind and level",
    "improbability": "its own improbability",
    "by_both": "kind, level and improbability",
    "oracle": "oracle: the wrong ones",
}
assert (set(SCORES) | set(RULES)) - {"oracle"} == set(KNOWING)


def policies(tables: Tables) -> dict[str, pd.DataFrame]:
    """ "base", "vl-chooser, seed 1" ... -> the rows of that policy."""
    table = tables["knowing"]
    seeds = table.groupby("variant")["seed"].nunique()
    found = {
        (str(variant), int(seed)): rows for (variant, seed), rows in table.groupby(["variant", "seed"], sort=False)
    }
    ordered = sorted(found, key=lambda key: (ORDER.index(key[0]) if key[0] in ORDER else len(ORDER), *key))
    return {f"{key[0]}, seed {key[1]}" if seeds[key[0]] > 1 else key[0]: found[key] for key in ordered}


def times_drawn(rows: pd.DataFrame) -> np.ndarray:
    """How often each first look is in a bootstrap sample, D x N; always the same."""
    generator = np.random.default_rng(SEED)
    times_DN = np.zeros((DRAWS, len(rows)))
    for places in rows.reset_index(drop=True).groupby(list(CELLS)).indices.values():
        qids, query = np.unique(rows["qid"].iloc[places], return_inverse=True)
        times_DN[:, places] = generator.multinomial(len(qids), np.full(len(qids), 1 / len(qids)), DRAWS)[:, query]
    return times_DN


def auc_within(rows: pd.DataFrame, score: str, within: Sequence[str] = CELLS) -> tuple[float, float, float]:
    """AUC of ``score`` against "the first look was wrong" within cells, and its interval."""
    return _over_pairs(rows, rows[score].to_numpy(float), within, lambda wrong, right: np.heaviside(wrong - right, 0.5))


def looks_more_when_wrong(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Probability of a second look after wrong first looks minus after right ones of the same kind and level."""
    return _over_pairs(rows, _second_look(rows), CELLS, np.subtract)


def _second_look(rows: pd.DataFrame) -> np.ndarray:
    """The probability of a second look, N."""
    return 1 / (1 + np.exp(-rows["looks"].to_numpy(float)))


def _over_pairs(
    rows: pd.DataFrame,
    numbers: np.ndarray,
    within: Sequence[str],
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[float, float, float]:
    """Mean of ``compare(wrong, right)`` over pairs of a wrong and a right first look of a cell, and its interval."""
    times_DN = np.vstack([np.ones(len(rows)), times_drawn(rows)])  # first the rows as they are
    wrong, sums, pairs = (rows["first_correct"] == 0).to_numpy(), np.zeros(len(times_DN)), np.zeros(len(times_DN))
    for places in rows.reset_index(drop=True).groupby(list(within)).indices.values():
        w, r = places[wrong[places]], places[~wrong[places]]
        compared_WR = compare(numbers[w][:, None], numbers[r][None, :])
        sums += ((times_DN[:, w] @ compared_WR) * times_DN[:, r]).sum(1)
        pairs += times_DN[:, w].sum(1) * times_DN[:, r].sum(1)
    if not pairs.all():
        return math.nan, math.nan, math.nan
    value, *drawn = sums / pairs
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(value), float(low), float(high)


def rule(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """Accuracy and tokens a response if the share of first looks with the highest score gets a second one.

    ``score``: a column, or "oracle" (the wrong ones first). Columns share (``SHARES``), accuracy, tokens. Of equal
    scores none comes first: their mean counts.
    """
    once = np.ones((1, len(rows)))
    found = {name: _rule(rows, score, name, once)[0] for name in ("accuracy", "tokens")}
    return pd.DataFrame({"share": SHARES, **found})


def rule_difference(rows: pd.DataFrame, score: str, other: str) -> pd.DataFrame:
    """Accuracy by ``rule`` of ``score`` minus that of ``other``: columns share, value, low, high."""
    times_DN = np.vstack([np.ones(len(rows)), times_drawn(rows)])
    one, two = (_rule(rows, name, "accuracy", times_DN) for name in (score, other))
    low, high = np.quantile((one - two)[1:], [0.025, 0.975], axis=0)
    return pd.DataFrame({"share": SHARES, "value": (one - two)[0], "low": low, "high": high})


def _rule(rows: pd.DataFrame, score: str, what: str, times_DN: np.ndarray) -> np.ndarray:
    """Accuracy or tokens at every one of ``SHARES``, for rows that count ``times_DN`` times: D x SHARES."""
    columns = ("first_correct", "second_correct") if what == "accuracy" else ("tokens", "second_tokens")
    first, second = (rows[name].to_numpy(float) for name in columns)
    scores = rows[score].to_numpy(float) if score != "oracle" else 1.0 - rows["first_correct"].to_numpy(float)
    order = np.argsort(-scores, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])  # of equal scores
    sizes = np.add.reduceat(times_DN[:, order], begins, axis=1).cumsum(1)
    gains = np.add.reduceat((times_DN * (second - first))[:, order], begins, axis=1).cumsum(1)
    start, whole = times_DN @ first, times_DN.sum(1)
    ends = zip(sizes, gains, whole, start, strict=True)
    return np.array(
        [(at + np.interp(np.array(SHARES) * n, np.r_[0, size], np.r_[0, gain])) / n for size, gain, n, at in ends]
    )


def known(tables: Tables) -> pd.DataFrame:
    """A row per policy and score: policy, score (a key of ``SCORES``), value, low, high of ``auc_within``.

    The odds of a second look only of policies that take some.
    """
    rows = [
        {"policy": name, "score": score, **dict(zip(("value", "low", "high"), auc_within(part, score), strict=True))}
        for name, part in policies(tables).items()
        for score in SCORES
        if score != "looks" or _second_look(part).mean() > HARDLY
    ]
    return pd.DataFrame(rows, columns=["policy", "score", "value", "low", "high"])


def figure(tables: Tables, theme: Theme = LIGHT, aucs: pd.DataFrame | None = None) -> Drawing:
    """What tells wrong from right, by policy, and what rules gain the first. ``aucs``: ``known``, where it is at hand.

    Raises NoData if nothing was measured.
    """
    found = policies(tables)
    if not found:
        raise NoData("Not measured yet.")
    name, rows = next(iter(found.items()))
    curves = {words: rule(rows, key) for key, words in RULES.items()}
    aucs = known(tables) if aucs is None else aucs
    caption = (
        "Left: does a score tell wrong from right first looks of the same kind and level? Lines: bootstrap over "
        f"queries. Right ({name}): accuracy over tokens if a share of the answers, those with the highest score, gets "
        "a forced second look."
    )
    return figures.knowing(aucs.assign(score=aucs["score"].map(SCORES)), curves, name, caption, theme=theme)


def part(tables: Tables, pictures: str) -> str:
    """The page's part: what tells wrong from right, for each policy; what rules would gain the first; the figure."""
    found = policies(tables)
    if not found:
        return "*Not measured yet.*"
    aucs = known(tables)
    name, rows = next(iter(found.items()))
    words = (
        f"{name}: accuracy (tokens a response) if the share with the highest score is looked at twice; below, less "
        "that of the rule by kind, in points."
    )
    drawing = figure(tables, aucs=aucs)
    shown = picture("knowing", drawing.caption, pictures)
    return "\n\n".join([_what_tells(found, aucs), words, _what_rules_gain(rows), shown, f"*{drawing.caption}*"])


def _what_tells(found: Mapping[str, pd.DataFrame], aucs: pd.DataFrame) -> str:
    """A line per policy."""
    head = ["policy", "first looks right", "mean probability of its answers", "second looks, by itself"]
    head += ["forced ones right", "second looks after wrong − after right"]
    head += [f"AUC of {words}" for words in SCORES.values()]
    head += [f"the same, within one answer: {SCORES[score]}" for score in ("probe", "improbability")]
    lines = []
    for name, rows in found.items():
        own = aucs[aucs["policy"] == name].set_index("score")[["value", "low", "high"]]
        means = [rows["first_correct"].mean(), np.exp(-rows["improbability"].astype(float)).mean()]
        means += [_second_look(rows).mean(), rows["second_correct"].mean()]
        cells = [f"{100 * share:.1f}" for share in means]
        cells.append(_words(looks_more_when_wrong(rows), points=True) if "looks" in own.index else "–")
        cells += [_words(own.loc[score].tolist()) if score in own.index else "–" for score in SCORES]
        cells += [_words(auc_within(rows, score, (*CELLS, "answer"))) for score in ("probe", "improbability")]
        lines.append([name, *cells])
    return markdown(head, lines)


def _what_rules_gain(rows: pd.DataFrame) -> str:
    """A line per rule, then differences from the rule by kind."""
    lines = []
    for key, words in RULES.items():
        at = rule(rows, key).set_index("share")
        lines.append([words, *(f"{100 * at['accuracy'][x]:.1f} ({at['tokens'][x]:.1f})" for x in SHOWN)])
    for key in ("improbability", "by_both"):
        less = rule_difference(rows, key, "by_kind").set_index("share")
        cells = [_words(less.loc[x].tolist(), points=True) if 0 < x < 1 else "" for x in SHOWN]
        lines.append([f"{RULES[key]}, less {RULES['by_kind']}", *cells])
    return markdown(["score", *(f"{100 * share:.0f} %" for share in SHOWN)], lines)


def _words(numbers: Sequence[float], points: bool = False) -> str:
    """A value and its interval."""
    value, low, high = (f"{100 * number:+.1f}" if points else f"{number:.2f}" for number in numbers)
    return f"{value} [{low}, {high}]"
