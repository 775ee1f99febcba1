"""The paper's numbers as data files: whole, consistent with what the paper says of them, and with their footnotes."""

from __future__ import annotations

import pytest

from rethinker.benchmarks import paper


def values(model, source):
    (row,) = [row for row in paper.rows() if (row.model, row.source) == (model, source)]
    return row.values


def test_every_row_and_value_is_there():
    counts = {}
    for row in paper.rows():
        counts[row.source] = counts.get(row.source, 0) + 1
        assert row.values.keys() <= paper.about()["splits"].keys() == paper.about()["columns"].keys()
        assert all(0 < value < 100 for value in row.values.values())
    assert counts == {"Table 1": 12, "Table 2": 12, "Table 3": 6, "Fig. 7": 4}
    assert sum(len(row.values) for row in paper.rows()) == 198
    reproduced = [(row.model, name) for row in paper.rows() for name in row.marks]
    assert reproduced == [
        *(("Qwen-2.5-VL-32B", "mmmu"), ("Qwen-2.5-VL-72B", "mmmu")),
        *(("Kimi-VL-16B", "mmmu"), ("QwenVL2.5-7B", "mmmu")),
    ]


def test_tables_agree_with_each_other_and_with_the_printed_differences():
    seven = values("VL-Rethinker-7B", "Table 2")
    for name, value in values("VL-Rethinker-7B (SSR, 16K)", "Table 3").items():
        assert value == seven[name]
    for name, value in values("VL-Rethinker-7B", "Fig. 7").items():
        assert round(value, 1) == seven[name]
    # "8.46 % relative improvement, significantly higher than the 2.49 %" (section 4.2); bars of Fig. 7
    start = values("VL-Reasoner-7B", "Fig. 7")
    for model, printed in (
        ("VL-Rethinker-7B", (8.46, 3.52, 1.98, 1.84)),
        ("VL-Reasoner-7B (forced)", (2.49, 0.76, 0.80, 0.53)),
        ("VL-Reasoner-7B (bound)", (13.21, 5.04, 3.77, 3.85)),
    ):
        relative = [100 * (value / start[name] - 1) for name, value in values(model, "Fig. 7").items()]
        assert relative == pytest.approx(printed, abs=0.03)
    # the rows of differences: what they are differences to
    best, base = values("VL-Rethinker-72B", "Table 1"), values("Qwen-2.5-VL-72B", "Table 1")
    for name, printed in (("mathvista", 5.6), ("mathverse", 6.3), ("mathvision", 6.8), ("emma", 4.4), ("mega", 2.3)):
        assert best[name] - base[name] == pytest.approx(printed, abs=0.001)
    other = values("OpenVLThinker-7B", "Table 2")
    for name, printed in (("mathvista", 4.7), ("mathverse", 6.3), ("mmmu_pro", 4.4), ("emma", 3.1)):
        assert seven[name] - other[name] == pytest.approx(printed, abs=0.001)


def test_rows_are_chosen_by_set_or_model():
    seven = [row.model for row in paper.choose(["7b"])]
    assert seven[0] == "QwenVL2.5-7B" and seven[-1] == "VL-Rethinker-7B" and len(seven) == 7
    assert [row.model for row in paper.choose(["32b"])] == ["Qwen-2.5-VL-32B", "VL-Rethinker-32B"]
    assert {row.source for row in paper.choose(["fig7", "ablations"])} == {"Table 3", "Fig. 7"}
    (row,) = paper.choose(["VL-Rethinker-7B"])
    assert row.source == "Table 2"
    assert paper.choose([]) == []
    with pytest.raises(ValueError, match=r"'13b' is no row of the paper; there are 7b, .*VL-Rethinker-72B"):
        paper.choose(["13b"])
