"""The benchmarks' rules against responses made by hand: what each published rule says of every trap of its data."""

from __future__ import annotations

import pytest

from rethinker.benchmarks.rules.numeric import equal_to_two_decimals, latex_value

VALUES: tuple[tuple[str, float | None], ...] = (
    ("7", 7.0),
    ("-0.25", -0.25),
    (r"\frac{16}{7}", 16 / 7),
    (r"-\frac{1}{2}", -0.5),
    (r"\frac{1}{0}", None),
    ("$45^2$", 2025.0),
    (r"2\pi", 6.283185307179586),
    (r"\pi", 3.141592653589793),
    (r"2\sqrt{3}", 3.4641016151377544),
    ("2(3)", 6.0),  # a product, never the mixed number 2 3/1
    ("3:4", 0.75),
    ("5!", 120.0),
    ("1,234", 1234.0),
    (r"\frac{7}{32}}.theansweris", 7 / 32),  # read up to a brace that closes nothing
    ("12cm", None),
    ("20%", None),
    (r"40^\circ", None),
    ("x", None),
    ("three", None),
    ("", None),
    ("(3,-4)", None),
    ("1+", None),
    (r"\infty", None),
    (r"__import__('os').system('false')", None),
    (r"2\frac{1}{2}", 1.0),
    (r"\log_2(8)", 3.0),
)


def test_latex_is_a_number_or_none() -> None:
    wrong = {text: latex_value(text) for text, value in VALUES if latex_value(text) != pytest.approx(value)}
    assert not wrong


def test_numbers_are_equal_to_two_decimals() -> None:
    assert equal_to_two_decimals(r"\frac{1}{1024}", r"\frac{1}{900}") and equal_to_two_decimals("0.335", "0.34")
    assert not equal_to_two_decimals("0.33", "0.34") and not equal_to_two_decimals("x", "x")
