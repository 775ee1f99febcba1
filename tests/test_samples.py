"""Samples survive a checkpoint exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import make_sample

from rethinker.rundir.samples import read_samples, write_samples
from rethinker.types import Grade, Query, Response, Rethinking, Sample

LOGPROBS = (-0.1, -1 / 3, -math.pi, -5e-324, -0.0, -1.7976931348623157e308)
SAMPLE = Sample(
    sample_id="3/geo/7\u00e4/2",
    query=Query(
        "geo/7\u00e4", 'What is <image> "x"?\n', "\\frac{1}{2}", ("/a b.png", "/c.png"), "angles", "made", 2, 1 / 7
    ),
    response=Response((1, 2, 3, 4, 5, 2**31 - 1), LOGPROBS, True, "so \\boxed{1}\n\nWait \u2028"),
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


@pytest.mark.parametrize("samples", [[], [SAMPLE], [PLAIN], [PLAIN, SAMPLE, PLAIN, SAMPLE]])
def test_round_trip_is_exact(samples, tmp_path):
    file = tmp_path / "replay.parquet"
    entries = [(number // 2, sample) for number, sample in enumerate(samples)]
    write_samples(file, entries)
    again = read_samples(file)
    assert again == entries
    assert repr(again) == repr(entries)  # types too: tuples, -0.0, bools
    copy = tmp_path / "copy.parquet"
    write_samples(copy, again)
    assert copy.read_bytes() == file.read_bytes()


def test_a_file_of_many_row_groups(tmp_path):
    """As no version writes it, but as others may rewrite it."""
    entries = [(index, make_sample(f"1/q/{index}", tokens=range(index))) for index in range(9)]
    write_samples(tmp_path / "one", entries)
    pq.write_table(pq.read_table(tmp_path / "one").slice(2), tmp_path / "many", row_group_size=2)
    assert read_samples(tmp_path / "many") == entries[2:]


def test_samples_of_a_query_share_it(tmp_path):
    write_samples(
        tmp_path / "file", [(1, SAMPLE), (1, replace(SAMPLE, sample_id="3/q/9", query=replace(SAMPLE.query)))]
    )
    (_, one), (_, other) = read_samples(tmp_path / "file")
    assert one.query is other.query
    assert not np.shares_memory(np.asarray(one.response.token_ids), np.asarray(other.response.token_ids))


def test_foreign_files_are_errors(tmp_path):
    write_samples(tmp_path / "file", [(1, SAMPLE)])
    table = pq.read_table(tmp_path / "file")
    pq.write_table(table.rename_columns({"reward": "rewards"}), tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"other holds no samples: missing columns \['reward'\], unknown \['rewards'\]"
    ):
        read_samples(tmp_path / "other")
