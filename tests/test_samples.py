"""Samples survive JSON exactly."""

from __future__ import annotations

import json
import math

import pytest

from rethinker.rundir.samples import sample_from_dict, sample_to_dict
from rethinker.types import Grade, Query, Response, Rethinking, Sample

LOGPROBS = (-0.1, -1 / 3, -math.pi, -5e-324, 0.0, -1.7976931348623157e308)
SAMPLE = Sample(
    sample_id="3/geo/7\u00e4/2",
    query=Query(
        "geo/7\u00e4", 'What is <image> "x"?\n', "\\frac{1}{2}", ("/a b.png", "/c.png"), "angles", "made", 2, 1 / 7
    ),
    response=Response((1, 2, 3, 4, 5, 6), LOGPROBS, True, "so \\boxed{1}\n\nWait \u2028"),
    grade=Grade(False, None, "no boxed answer"),
    reward=0.1,
    episode=3,
    sampled_mask=(True, True, False, False, True, True),
    nll_mask=(False, False, True, True, True, True),
    behavior_logprobs=tuple(value / 3 for value in LOGPROBS),
    advantage=-1 / 3,
    replayed=True,
    rethinking=Rethinking("self-correction", "so", 2, 2, False, own_answer=True, kept=True),
    prompt_tokens=1307,
)
PLAIN = Sample("0/q/0", Query("q", "?", "1"), Response((), (), False, ""), Grade(True, "1", "exact"), 1.0, 0, (), ())


@pytest.mark.parametrize("sample", [SAMPLE, PLAIN])
def test_round_trip_is_exact(sample):
    text = json.dumps(sample_to_dict(sample), allow_nan=False)
    again = sample_from_dict(json.loads(text))
    assert again == sample
    assert repr(again) == repr(sample)  # types too: tuples, -0.0, bools
    assert json.dumps(sample_to_dict(again)) == text


def test_foreign_rows_are_errors():
    row = sample_to_dict(SAMPLE)
    with pytest.raises(ValueError, match=r"not a saved Sample: missing keys \['reward'\], unknown keys \['rewards'\]"):
        sample_from_dict({**{k: v for k, v in row.items() if k != "reward"}, "rewards": 1.0})
    with pytest.raises(ValueError, match=r"not a saved Grade: missing keys \['reason'\]"):
        sample_from_dict({**row, "grade": {"correct": True, "extracted": None}})
