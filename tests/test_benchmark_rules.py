"""The benchmarks' rules against responses made by hand: what each published rule says of every trap of its data."""

from __future__ import annotations

import gzip
import json
import runpy
from pathlib import Path

import pytest

from rethinker.benchmarks.rules.numeric import equal_to_two_decimals, latex_value

ROOT = Path(__file__).parents[1]

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
    assert not wrong, "\n".join(map(repr, wrong))


def test_numbers_are_equal_to_two_decimals() -> None:
    assert equal_to_two_decimals(r"\frac{1}{1024}", r"\frac{1}{900}") and equal_to_two_decimals("0.335", "0.34")
    assert not equal_to_two_decimals("0.33", "0.34") and not equal_to_two_decimals("x", "x")


FIVE = ("12 cm", "$\\frac{1}{2}$", "$40^{\\circ}$", "east", "20")
DRAWN = ("A", "B", "C", "D", "E")
SHUFFLED = ("A", "B", "C", "E", "D")  # as in rows 654, 742 and 1754: the option E is choice D

# response, gold, options, score, extracted (None: unparsed)
MATHVISION = (
    ("\\boxed{B}", "B", FIVE, 1, "b"),
    ("So the answer is \\boxed{(B)}.", "B", FIVE, 1, "b"),
    ("\\boxed{\\text{B}}", "B", FIVE, 1, "b"),
    ("\\boxed{A}, no: \\boxed{B}", "B", FIVE, 1, "b"),
    ("\\boxed{B}, no: \\boxed{A}", "B", FIVE, 0, "a"),
    ("\\boxed{\\frac{1}{2}}", "B", FIVE, 1, "\\frac{1}{2}"),  # the option's value counts
    ("\\boxed{0.5}", "B", FIVE, 1, "\\frac{1}{2}"),
    ("\\boxed{0.504}", "B", FIVE, 1, "0.504"),  # two decimals
    ("\\boxed{0.51}", "B", FIVE, 0, "0.51"),
    ("\\boxed{12 cm}", "A", FIVE, 0, "12cm"),  # spaces are deleted from the answer, not from the option
    ("\\boxed{12}", "A", FIVE, 0, "12"),  # "12 cm" is no number
    ("\\boxed{40^\\circ}", "C", FIVE, 0, "40"),  # neither is an option in degrees
    ("\\boxed{40°}", "C", FIVE, 0, "40°"),
    ("\\boxed{east}", "D", FIVE, 1, "east"),
    ("\\boxed{\\text{East}}", "D", FIVE, 0, "{east}"),  # only {a} to {e} lose their braces
    ("\\boxed{20}", "E", FIVE, 1, "20"),
    ("\\boxed{20\\%}", "E", FIVE, 1, "20"),
    ("\\boxed{20%}", "E", FIVE, 0, "20%"),
    ("\\boxed{E: 20}", "E", FIVE, 0, "e:20"),
    ("\\boxed{\\textbf{(E) } 20}", "E", FIVE, 0, "bfe20"),
    ("The answer is E", "E", FIVE, 1, "e"),
    ("The answer is E.", "E", FIVE, 1, "e"),
    ("the correct answer is (E) because it fits.", "E", FIVE, 0, "ebecauseitfits"),
    ("Thus the final answer is 20. It fits.", "E", FIVE, 1, "20"),
    ("I pick E.", "E", FIVE, 1, "e"),
    ("I pick (E).", "E", FIVE, 1, "e"),
    ("E\nsince it fits", "E", FIVE, 1, "e"),
    ("(E)\nsince it fits", "E", FIVE, 1, "e"),
    ("(E) E\nsince", "E", FIVE, 1, "e"),
    ("E", "E", FIVE, 1, "e"),
    ("It must be E", "E", FIVE, 0, "itmustbee"),
    ("We cannot tell which of the figures it is.", "E", FIVE, 0, None),
    ("", "E", FIVE, 0, None),
    ("\\boxed{}", "E", FIVE, 0, "\\boxed"),  # an empty box is deleted, and what is left is the answer
    ("\\boxed{e}", "D", SHUFFLED, 1, "e"),  # lucky: the text of option D
    ("\\boxed{E}", "E", SHUFFLED, 1, "e"),
    ("\\boxed{D}", "E", SHUFFLED, 1, "d"),
    ("\\boxed{C}", "C", DRAWN, 1, "c"),
    ("\\boxed{\\frac{16}{7}}", "$\\boxed{\\frac{16}{7}}$", (), 0, "\\frac{16}{7}"),  # the gold answer is not cleaned
    ("\\boxed{\\frac{36}{13}}", "\x0crac{36}{13}", (), 0, "\\frac{36}{13}"),  # the form feed of row 2830
    ("\\boxed{69}", "69{degrees}", (), 0, "69"),
    ("\\boxed{11}", "11 ", (), 1, "11"),
    ("\\boxed{2025}", "45^2", (), 1, "2025"),
    ("\\boxed{1:2}", "1:2", (), 1, "1:2"),
    ("\\boxed{\\frac{1}{2}}", "1:2", (), 1, "\\frac{1}{2}"),
    ("\\boxed{(3, -4)}", "(3,-4)", (), 1, "(3,-4)"),
    ("\\boxed{(\\sqrt{9.01}, -4.001)}", "(3.0,-4.0)", (), 1, "(\\sqrt{9.01},-4.001)"),  # each item to two decimals
    ("\\boxed{[1, 2]}", "[1,2]", (), 1, "[1,2]"),
    ("\\boxed{(1, x)}", "(1,2)", (), 0, "(1,x)"),
    ("\\boxed{c}", "C", (), 1, "c"),
    ("\\boxed{\\frac{1}{1024}}", "\\frac{1}{900}", (), 1, "\\frac{1}{1024}"),
    ("\\boxed{\\frac{7^3}{2^{12} \\cdot 13^2}}", "0", (), 1, "\\frac{7^3}{2^{12}\\cdot13^2}"),
    ("\\boxed{x = 5}", "5", (), 1, "5"),
    ("\\boxed{\\pi \\approx 3.14}", "3.14", (), 1, "3.14"),
    ("\\boxed{2\\sqrt3}", "3.46", (), 1, "2\\sqrt{3}"),
    ("\\boxed{\\sqrt2 \\cdot \\frac12}", "0.71", (), 1, "\\sqrt{2}\\cdot\\frac{1}{2}"),
    ("\\boxed{\\frac12}", "0.5", (), 0, "\\frac12"),  # braces are added only where there is a root
    ("\\boxed{\\dfrac{1}{2}}", "0.5", (), 1, "\\frac{1}{2}"),
    ("\\boxed{1/2}", "0.5", (), 1, "\\frac{1}{2}"),
    ("\\boxed{.5}", "0.5", (), 1, "\\frac{1}{2}"),
    ("\\boxed{150 cm^{2}}", "150", (), 0, "150cm^{2}"),
    ("\\boxed{7 \\text{ units}}", "7", (), 1, "7"),
    ("\\boxed{7 km}", "7", (), 1, "7"),
    ("\\boxed{three}", "3", (), 0, "three"),
    ("\\boxed{1,234}", "1234", (), 1, "1,234"),
    ("The total is 36.", "36", (), 1, "36"),  # a number behind the last "is "
    ("The total is 36 apples.", "36", (), 0, "thetotalis36apples"),
    ("The answer should be 36 apples", "36", (), 0, "36apples"),
    ("\\boxed{36", "36", (), 0, "\\boxed{36"),  # cut: no closing brace
    ("\\boxed{2(3)}", "6", (), 1, "2(3)"),
    ("\\boxed{\\infty}", "\\infty", (), 1, "\\infty"),
    ("\\boxed{+\\infty}", "\\infty", (), 1, "\\infty"),
    ("\\boxed{__import__('os')}", "5", (), 0, "__import__('os')"),
)

CITIES = ("hong kong", "osaka", "shanghai", "tokyo")
YES_NO = ("Yes", "No")
SAME_TEXT = ("6", "12", "18", "18")  # pid 781
TURNED = ("(c)", "(d)", "(a)", "(b)", "(e)")  # pid 849

# response, gold, choices, answer type, precision, score, extracted, guessed
MATHVISTA = (
    ("The correct answer is D (tokyo).", "tokyo", CITIES, "text", None, 1, "D", None),
    ("\\boxed{D}", "tokyo", CITIES, "text", None, 1, "D", None),
    ("\\boxed{(D) tokyo}", "tokyo", CITIES, "text", None, 1, "D", None),
    ("\\boxed{tokyo}", "tokyo", CITIES, "text", None, 1, "D", None),
    ("\\boxed{\\text{Tokyo}}", "tokyo", CITIES, "text", None, 1, "D", None),
    ("tokyo", "tokyo", CITIES, "text", None, 1, "tokyo", None),
    ("D", "tokyo", CITIES, "text", None, 1, "D", None),
    ("(d)", "tokyo", CITIES, "text", None, 1, "D", None),
    ("d", "tokyo", CITIES, "text", None, 0, None, 0.0),  # only a capital is a bare letter; nearest to "d": "osaka"
    ("The answer is (A).", "tokyo", CITIES, "text", None, 0, "A", None),
    ("Osaka is large. Tokyo is larger.", "tokyo", CITIES, "text", None, 1, "D", None),
    ("The city is in A country. So Option B fits.", "osaka", CITIES, "text", None, 1, "B", None),
    ("A country this size needs one: osaka.", "osaka", CITIES, "text", None, 1, "B", None),  # an article
    ("<think>maybe C</think><answer>D</answer>", "tokyo", CITIES, "text", None, 1, "D", None),
    ("**Answer:** D", "tokyo", CITIES, "text", None, 1, "D", None),
    ("The answer is D. I hope this helps!", "tokyo", CITIES, "text", None, 1, "D", None),
    (
        "\\boxed{E}",
        "tokyo",
        CITIES,
        "text",
        None,
        0,
        None,
        0.0,
    ),  # E is no choice; nearest to "E": "osaka", the first of equals
    ("N/A", "No", YES_NO, "text", None, 0, None, 1.0),
    ("I cannot tell.", "Yes", YES_NO, "text", None, 0, None, 1.0),  # 12 edits to either: the first
    ("", "No", YES_NO, "text", None, 0, None, 1.0),  # the published rule: the shorter word
    ("Yes", "Yes", YES_NO, "text", None, 1, "Yes", None),
    ("yes", "Yes", YES_NO, "text", None, 1, "A", None),
    ("\\boxed{no}", "No", YES_NO, "text", None, 1, "B", None),
    ("Therefore, there is no such ball.", "No", YES_NO, "text", None, 1, "B", None),
    ("\\boxed{C}", "18", SAME_TEXT, "text", None, 1, "C", None),
    ("\\boxed{D}", "18", SAME_TEXT, "text", None, 1, "D", None),  # right by its text
    ("\\boxed{18}", "18", SAME_TEXT, "text", None, 1, "C", None),
    ("\\boxed{(a)}", "(c)", TURNED, "text", None, 1, "A", None),  # a letter first, whatever the text
    ("\\boxed{(a)}", "(a)", TURNED, "text", None, 0, "A", None),
    ("\\boxed{C}", "(a)", TURNED, "text", None, 1, "C", None),
    ("\\boxed{e}", "e", ("a", "b", "c", "d", "e"), "text", None, 1, "E", None),  # pid 342
    ("\\boxed{6}", "6cm", ("6cm", "7cm", "16cm"), "text", None, 1, "A", None),
    ("\\boxed{6.0}", "6cm", ("6cm", "7cm", "16cm"), "text", None, 0, None, 1.0),
    ("\\boxed{60^\\circ}", "60*\\degree", ("30*\\degree", "60*\\degree"), "text", None, 1, "B", None),  # pid 482
    ("\\boxed{(0, 0)}", "(u1, u2) = (0, 0)", ("(u1, u2) = (0, 0)", "(u1, u2) = (1, 0)"), "text", None, 0, None, 1.0),
    ("\\boxed{4.40}", "4.40米", ("3.20米", "4.40米"), "text", None, 1, "B", None),
    ("所以答案: B", "4.40米", ("3.20米", "4.40米"), "text", None, 1, "B", None),
    ("The number missing in the sequence is 14.", "14", (), "integer", None, 1, "14", None),
    ("14", "14", (), "integer", None, 1, "14", None),
    ("14.0", "14", (), "integer", None, 1, "14", None),
    ("1.5", "1", (), "integer", None, 1, "1", None),  # truncated, as published
    ("\\boxed{-1.5}", "-1", (), "integer", None, 1, "-1", None),
    ("\\boxed{1,000}", "1000", (), "integer", None, 1, "1000", None),  # our extractor drops separators and units
    ("\\boxed{20\\%}", "20", (), "integer", None, 1, "20", None),
    ("\\boxed{\\$45}", "45", (), "integer", None, 1, "45", None),
    ("\\boxed{−26}", "-26", (), "integer", None, 1, "-26", None),
    ("x = 5, y = 12, so z = 13", "13", (), "integer", None, 1, "13", None),
    ("There are 4 dots in 2 groups, so each group has 2 dots.", "2", (), "integer", None, 0, "4", None),  # "are" leads
    ("\\boxed{3/4}", "0", (), "integer", None, 0, None, None),
    ("inf", "5", (), "integer", None, 0, None, None),
    ("nan", "5", (), "integer", None, 0, None, None),
    ("three", "3", (), "integer", None, 0, None, None),
    ("I cannot answer this.", "3", (), "integer", None, 0, None, None),
    ("", "3", (), "integer", None, 0, None, None),
    ("The velocity vPB is -26 km/h.", "-26", (), "integer", None, 1, "-26", None),
    ("The fraction is 0.6, which means that six out of ten face it.", "0.6", (), "float", 1, 1, "0.6", None),
    ("\\boxed{2.83}", "2.8", (), "float", 1, 1, "2.8", None),  # rounded to the row's precision
    ("\\boxed{2.25}", "2.3", (), "float", 1, 0, "2.2", None),  # to the even digit, as Python rounds
    ("2", "2.0", (), "float", 1, 1, "2.0", None),
    ("\\boxed{0.6}", "0.60", (), "float", 2, 0, "0.6", None),  # str(round(0.6, 2)) is "0.6"
    ("Luca needs $1.45 to buy a candy.", "1.45", (), "float", 2, 1, "1.45", None),
    ("\\boxed{1.456}", "1.46", (), "float", 2, 1, "1.46", None),
    ("\\boxed{\\frac{1}{3}}", "0.33", (), "float", 2, 0, None, None),  # no float
    ("= 0.274936\n\nTherefore, the sum is 0.3", "0.3", (), "float", 1, 1, "0.3", None),
    ("\\boxed{1e1}", "10.0", (), "float", 1, 1, "10.0", None),
    ("The peak lies between 2007 and 2008.", "[2007, 2008]", (), "list", None, 1, "[2007, 2008]", None),
    ("\\boxed{[2007,2008]}", "[2007, 2008]", (), "list", None, 1, "[2007, 2008]", None),
    ("\\boxed{[2008, 2007]}", "[2007, 2008]", (), "list", None, 0, "[2008, 2007]", None),
    ("The list is:\n\n```\n[0, 2, 1]\n```", "[0, 2, 1]", (), "list", None, 1, "[0, 2, 1]", None),
    ("There is none.", "[0, 2, 1]", (), "list", None, 0, None, None),
)


# extraction, gold, choices, answer type, precision, score, guessed: MathVista's own rule, behind its extraction
EXTRACTED = (
    ("(d)", "tokyo", CITIES, "text", None, 1, None),
    ("(D) or (A)", "tokyo", CITIES, "text", None, 1, None),  # the first one
    (" D ", "tokyo", CITIES, "text", None, 1, None),
    ("D (tokyo)", "tokyo", CITIES, "text", None, 0, 1.0),  # no bracketed letter: the nearest
    ("Tokyo", "tokyo", CITIES, "text", None, 0, 1.0),
    ("AB", "hong kong", CITIES, "text", None, 0, 0.0),
    ("", "Yes", YES_NO, "text", None, 0, 0.0),
    ("20%", "20", (), "integer", None, 0, None),
    ("1,000", "1000", (), "integer", None, 0, None),
    ("1_000", "1000", (), "integer", None, 1, None),  # as Python reads it
    (" 7.9 ", "7", (), "integer", None, 1, None),
    ("1e400", "7", (), "integer", None, 0, None),
    ("3/4", "0.75", (), "float", 2, 0, None),
    ("0.755", "0.76", (), "float", 2, 1, None),
    ("[1,2]", "[1, 2]", (), "list", None, 0, None),  # text
    ("[1, 2]", "[1, 2]", (), "list", None, 1, None),
)


def test_mathvista_on_extracted_answers() -> None:
    from rethinker.benchmarks.rules.mathvista import edit_distance, score_extraction

    wrong = []
    for extraction, gold, choices, kind, precision, *expected in EXTRACTED:
        outcome = score_extraction(extraction, gold, choices, kind, precision)
        if [outcome.score, outcome.guessed] != expected:
            wrong.append((extraction, gold, expected, outcome))
    assert not wrong, "\n".join(map(repr, wrong))
    pairs = {("kitten", "sitting"): 3, ("", "abc"): 3, ("abc", "abc"): 0, ("ab", "ba"): 2}
    assert {pair: edit_distance(*pair) for pair in pairs} == pairs


def test_mathvision() -> None:
    from rethinker.benchmarks.rules.mathvision import score

    assert len(MATHVISION) >= 60
    wrong = []
    for response, gold, options, *expected in MATHVISION:
        outcome = score(response, gold, options)
        if [outcome.score, outcome.extracted, outcome.guessed] != [*expected, None]:
            wrong.append((response, gold, expected, outcome))
    assert not wrong, "\n".join(map(repr, wrong))


def test_mathvista() -> None:
    from rethinker.benchmarks.rules.mathvista import score

    assert len(MATHVISTA) >= 60
    wrong = []
    for response, gold, choices, kind, precision, *expected in MATHVISTA:
        outcome = score(response, gold, choices, kind, precision)
        if [outcome.score, outcome.extracted, outcome.guessed] != expected:
            wrong.append((response, gold, expected, outcome))
    assert not wrong, "\n".join(map(repr, wrong))


FRUIT = ("Apple", "Banana", "Cherry", "Date")
PRICES = ("$6", "$7", "$8", "$9")

# response, gold, options, score, extracted, guessed
MMMU_CHOICE = (
    ("B", "B", FRUIT, 1, "B", None),
    ("(B)", "B", FRUIT, 1, "B", None),
    ("B.", "B", FRUIT, 1, "B", None),
    ("B) Banana", "B", FRUIT, 0, None, 0.25),  # no marker, and no more than five words
    ("The answer is B", "B", FRUIT, 1, "B", None),
    ("The answer is B.", "B", FRUIT, 1, "B", None),
    ("The answer is **B**.", "B", FRUIT, 0, None, 0.25),
    ("The answer is (B), not (C).", "B", FRUIT, 0, "C", None),  # of several the last
    ("Not (C); the answer is (B).", "B", FRUIT, 1, "B", None),
    ("(A) is wrong, so B it is", "B", FRUIT, 0, "A", None),  # brackets before bare letters
    ("Is it B or C ? I say B now", "B", FRUIT, 1, "B", None),
    ("\\boxed{B}", "B", FRUIT, 0, None, 0.25),  # a box is no marker
    ("\\boxed{(B)}", "B", FRUIT, 1, "B", None),
    ("Answer: B", "B", FRUIT, 1, "B", None),
    ("Answer:B", "B", FRUIT, 0, None, 0.25),
    ("A fruit that is yellow", "B", FRUIT, 0, "A", None),  # the article is choice A
    ("It is A fruit, so B", "B", FRUIT, 1, "B", None),
    ("The yellow fruit in the picture is a banana", "B", FRUIT, 1, "B", None),  # the option's text, any case
    ("a banana", "B", FRUIT, 0, None, 0.25),  # five words at most
    ("I would say it is a banana rather than an apple", "B", FRUIT, 0, "A", None),  # the last one named
    ("I would say it is a cherry", "B", FRUIT, 0, "C", None),
    ("I would say it is pineapple juice here", "A", FRUIT, 1, "A", None),  # a substring
    ("DNA is made of bases", "A", FRUIT, 0, None, 0.25),  # MMMU wants a space before the letter
    ("I see DNA here, B and nothing else", "B", FRUIT, 1, "B", None),
    ("", "B", FRUIT, 0, None, 0.25),
    ("E", "B", FRUIT, 0, None, 0.25),
    ("(E)", "B", FRUIT, 0, None, 0.25),
    ("b", "B", FRUIT, 0, None, 0.25),
    ("(b)", "B", FRUIT, 0, None, 0.25),
    ("'B'", "B", FRUIT, 1, "B", None),
    (":B;", "B", FRUIT, 1, "B", None),  # each sign is stripped once, in the order , . ! ? ; : '
    ("B;:", "B", FRUIT, 0, None, 0.25),
    ("B;", "B", FRUIT, 1, "B", None),
    ("B!", "B", FRUIT, 1, "B", None),
    ("The price is then equal to $7", "B", PRICES, 1, "B", None),
    ("Then it is $78 or so here", "B", PRICES, 1, "B", None),  # "$7" within "$78"
    ("The total of both prices equals $8, not $7", "B", PRICES, 1, "B", None),
    ("I cannot see the image, sorry about that.", "B", FRUIT, 0, None, 0.25),
    ("B\nbecause", "B", FRUIT, 0, None, 0.25),
    ("B \nbecause", "B", FRUIT, 1, "B", None),
    ("So B is right and (D) is not", "B", FRUIT, 0, "D", None),
    ("(A)(B)(C)", "C", FRUIT, 1, "C", None),
    ("no letter", "F", FRUIT, 0, None, 0.0),  # a gold answer that no draw can give
)

# response, golds, score
MMMU_OPEN = (
    ("12.97", ("12.97",), 1),
    ("The answer is 12.97.", ("12.97",), 1),
    ("12.974", ("12.97",), 1),  # two decimals
    ("12.98", ("12.97",), 0),
    ("x = 12.97", ("12.97",), 1),
    ("x = 5\ny = 12.97", ("12.97",), 1),
    ("x = 12.97\ny = 5", ("12.97",), 0),  # "=" leads in the last line only
    ("So it is 12.97\nand that is it", ("12.97",), 1),  # every line with a key word counts
    ("The answer is 4.0", ("4",), 1),
    ("The values are 3, 4 and 5", ("4",), 1),  # any number of the tail
    ("Thus 1,234 people", ("1234",), 1),
    ("1,234", ("1234",), 1),
    ("1.5e3", ("1500",), 1),
    ("-5", ("5",), 0),
    ("The answer is 5%", ("5",), 1),
    ("The answer is \\boxed{5}", ("5",), 1),
    ("It is 1/64", ("1/64",), 1),
    ("It is 0.015625", ("1/64",), 0),
    ("24/7", ("24/7", "3.429"), 1),  # several golds
    ("3.43", ("24/7", "3.429"), 1),
    ("The answer is 3.4", ("24/7", "3.429"), 0),
    ("The compound is MgS", ("$MgS$", "MgS"), 1),
    ("mgs", ("$MgS$", "MgS"), 1),
    ("MgO", ("$MgS$", "MgS"), 0),
    ("It could be Florida", ("Tampa", "Florida"), 1),
    ("Not Tampa, so Orlando", ("Tampa", "Florida"), 0),  # the tail behind "so "
    ("Not Florida but the city of Tampa Bay", ("Tampa", "Florida"), 1),  # a substring of the whole
    ("C", ("C",), 1),
    ("The answer is C", ("C",), 1),
    ("Cats", ("C",), 0),  # one letter needs a space beside it
    ("It is vitamin C", ("C",), 1),
    ("The answer is D and C", ("C",), 1),
    ("", ("C",), 0),
    ("The answer is:", ("5",), 0),
    ("I do not know", ("5",), 0),
    ("The result is 5. Thus 6.", ("5",), 0),  # sentences are not cut: the text was lower-cased before
    ("The result is 5\nThus 6.", ("5",), 1),
    ("five", ("5",), 0),
)

TEN = ("Apple", "Banana", "Cherry", "Date", "Elder", "Fig", "Grape", "Honeydew", "Ice", "Jackfruit")

MMMU_PRO = (
    ("Answer: B", "B", TEN, 1, "B", None),
    ("Answer:B", "B", TEN, 1, "B", None),
    ("Answer: (B)", "B", TEN, 1, "B", None),
    ("Answer: **B**", "B", TEN, 1, "B", None),
    ("Answer: $B$", "B", TEN, 1, "B", None),
    ("Answer: \\boxed{B}", "B", TEN, 1, "B", None),
    ("Answer: B. banana", "B", TEN, 1, "B", None),  # one capital only
    ("Answer: C. Cherry", "C", TEN, 1, "C", None),
    ("Answer: B. Apple", "B", TEN, 1, "B", None),  # A and B stand in it: falls through to "B."
    ("Answer: B) Apple", "B", TEN, 0, None, 0.1),
    ("Answer: b", "B", TEN, 0, None, 0.1),
    ("Answer: Banana", "B", TEN, 1, "B", None),  # its initial
    ("Answer: Elder", "B", TEN, 0, "E", None),
    ("Answer: None", "B", TEN, 0, None, 0.1),
    ("Answer: D\nAnswer: B", "B", TEN, 1, "B", None),
    ("Answer: B\nAnswer: D", "B", TEN, 0, "D", None),
    ("Answer: B or C", "B", TEN, 0, "C", None),  # " C " is the only one with spaces on both sides
    ("Answer: K", "B", TEN, 0, None, 0.1),
    ("Answer: B, as it is yellow", "B", TEN, 1, "B", None),
    ("Answer: B, As said", "B", TEN, 0, None, 0.1),
    ("Answer: (B) Because", "B", TEN, 1, "B", None),
    ("Answer: (B) Apple", "B", TEN, 1, "B", None),  # two capitals, then the brackets
    ("answer: B", "B", TEN, 1, "B", None),
    ("answer: B is it", "B", TEN, 1, "B", None),
    ("**Answer**: B", "B", TEN, 1, "B", None),
    ("\\boxed{B}", "B", TEN, 0, None, 0.1),
    ("\\boxed{B}.", "B", TEN, 0, None, 0.1),
    ("The DNA shows it", "A", TEN, 1, "A", None),  # "A " needs nothing before it
    ("The DNA shows that B is it", "B", TEN, 1, "B", None),  # of A and B only " B " has both spaces
    ("The NASA and the DNA and B. Then", "B", TEN, 0, "A", None),
    ("It is B.", "B", TEN, 1, "B", None),
    ("It is B. So", "B", TEN, 1, "B", None),
    ("My PhD. work", "D", TEN, 1, "D", None),
    ("(B) or (D)", "B", TEN, 0, "D", None),
    ("(D) or (B)", "B", TEN, 1, "B", None),
    ("B", "B", TEN, 1, "B", None),
    ("b", "B", TEN, 0, None, 0.1),
    ("", "B", TEN, 0, None, 0.1),
    ("I do not see any figure in this one.", "B", TEN, 0, "I", None),  # the pronoun
    ("Nothing can be said about this one here.", "B", TEN, 0, None, 0.1),
    ("the yellow one must be the banana then", "B", TEN, 1, "B", None),
    ("the banana and not the fig here", "B", TEN, 0, "F", None),
    ("banana", "B", TEN, 0, None, 0.1),
    ("Answer: A", "B", ("A", "B", "Not enough information"), 0, "A", None),
    ("Answer: B", "B", ("A", "B", "Not enough information"), 1, "B", None),  # Accounting_29, its list taken out
    ("none", "B", ("[list]",), 0, None, 0.0),  # as published it has one option: B is never drawn
    ("Answer: H", "H", TEN, 1, "H", None),
    ("Answer: J", "J", TEN, 1, "J", None),
    ("Answer: I", "I", TEN, 1, "I", None),
    ("I think it is clear", "I", TEN, 1, "I", None),
    ("I think B is it", "B", TEN, 1, "B", None),
    ("Answer: I think B", "B", TEN, 1, "B", None),
    ("Answer: E=mc^2", "E", TEN, 1, "E", None),
    ("Answer: D) Date", "D", TEN, 1, "D", None),
    ("Answer: The second one", "B", TEN, 0, None, 0.1),
    ("Answer: Grape", "G", TEN, 1, "G", None),
    ("Answer: Fig and Grape", "F", TEN, 0, None, 0.1),
    ("Answer: 5\n(B)", "B", TEN, 1, "B", None),
    ("Final Answer: B.", "B", TEN, 1, "B", None),
    ("Answer:", "B", TEN, 0, None, 0.1),
    ("The answer is:\nB\n", "B", TEN, 0, None, 0.1),
    ("The answer is:\n B ", "B", TEN, 1, "B", None),
)

MOVES = ("up", "\\frac{1}{2}", "<image_2>", "5", "text with \\text{L}")

EMMA = (
    ("\\boxed{B}", "B", MOVES, 1, "B"),
    ("So \\boxed{\\text{B}}.", "B", MOVES, 1, "B"),
    ("\\boxed{b}", "B", MOVES, 1, "b"),
    ("\\boxed{A}", "a", MOVES, 1, "A"),  # phy_111 to phy_139: the gold letter is lower case
    ("\\boxed{a}", "a", MOVES, 1, "a"),
    ("\\boxed{A} or \\boxed{B}", "B", MOVES, 1, "B"),
    ("\\boxed{B} or \\boxed{A}", "B", MOVES, 0, "A"),
    ("\\boxed{up}", "A", MOVES, 1, "up"),  # the option's text
    ("\\boxed{UP}", "A", MOVES, 1, "UP"),
    ("\\boxed{0.5}", "B", MOVES, 1, "0.5"),
    ("\\boxed{0.501}", "B", MOVES, 1, "0.501"),
    ("\\boxed{0.51}", "B", MOVES, 0, "0.51"),
    ("\\boxed{\\frac12}", "B", MOVES, 0, "\\frac12"),
    ("\\boxed{<image_2>}", "C", MOVES, 1, "<image_2>"),
    ("\\boxed{C: <image_2>}", "C", MOVES, 0, "C: <image_2>"),
    ("\\boxed{B:}", "B", MOVES, 0, "B:"),
    ("\\boxed{**d**}", "D", MOVES, 0, "**d**"),
    ("\\boxed{C: independent of \\text{L}}", "C", MOVES, 0, "L"),  # the last \text alone counts
    ("\\boxed{\\text{A} \\text{D}}", "D", MOVES, 1, "D"),
    ("\\boxed{(B)}", "B", MOVES, 0, "(B)"),
    ("\\boxed{5}", "D", MOVES, 1, "5"),
    ("\\boxed{5.0}", "D", MOVES, 1, "5.0"),
    ("\\boxed{five}", "D", MOVES, 0, "five"),
    ("B", "B", MOVES, 1, "B"),
    ("b", "B", MOVES, 1, "B"),
    ("B: up", "B", MOVES, 1, "B"),
    ("B. up", "B", MOVES, 0, "B. up"),
    ("(B)", "B", MOVES, 0, "(B)"),
    ("I", "I", ("1",) * 9, 1, "I"),
    ("5", "D", MOVES, 1, "5"),
    ("The correct answer is B", "B", MOVES, 1, "b"),
    ("The correct answer is\n B.", "B", MOVES, 1, "b"),
    ("The correct answer is **B**.", "B", MOVES, 0, "**b**"),
    ("The answer is B, since it goes up.", "B", MOVES, 0, "b, since it goes up"),
    ("The final answer is D. The answer is A.", "D", MOVES, 1, "d"),  # "final answer is" before "answer is"
    ("The answer should be 5.", "D", MOVES, 1, "5"),
    ("The answer is 0.5", "B", MOVES, 0, "0"),  # cut at the first full stop
    ("The answer is: B", "B", MOVES, 0, ": b"),
    ("Answer: B", "B", MOVES, 0, "Answer: B"),
    ("I think that it has to be the option B", "B", MOVES, 0, None),
    ("", "B", MOVES, 0, None),
    ("\\boxed{B", "B", MOVES, 0, "\\boxed{B"),  # cut: no box, and short enough to be an answer
    ("\\boxed{", "B", MOVES, 0, "\\boxed{"),
    ("\\boxed{}", "B", MOVES, 0, ""),
    ("\\boxed{\\boxed{B}}", "B", MOVES, 0, "\\boxed{B}"),  # the outer box
    ("\\boxed{\\frac{2}{4}}", "B", MOVES, 1, "\\frac{2}{4}"),
    ("\\boxed{9}", "9", (), 1, "9"),
    ("\\boxed{9.0}", "9", (), 1, "9.0"),
    ("\\boxed{9.004}", "9", (), 1, "9.004"),
    ("\\boxed{nine}", "9", (), 0, "nine"),
    ("\\boxed{Three}", "3", (), 0, "Three"),
    ("\\boxed{9 bonds}", "9", (), 0, "9 bonds"),
    ("\\boxed{90^\\circ}", "90", (), 0, "90^\\circ"),
    ("\\boxed{Red}", "red", (), 1, "Red"),
    ("\\boxed{ red }", "red", (), 1, "red"),
    ("\\boxed{x+1}", "1+x", (), 0, "x+1"),  # symbols are no numbers
    ("\\boxed{x+1}", "x+1", (), 1, "x+1"),
    ("9", "9", (), 1, "9"),
    ("nine", "nine", (), 1, "nine"),
    ("There are 9 bonds in the structure shown.", "9", (), 0, None),
    ("The answer is 9.", "9", (), 1, "9"),
    ("\\boxed{\\sqrt{4}}", "2", (), 1, "\\sqrt{4}"),
    ("\\boxed{$2$}", "2", (), 1, "$2$"),
    ("\\boxed{exec('x')}", "2", (), 0, "exec('x')"),
)

ANGLE = "Find the angle.\nChoices:\nA:40°\nB:60°\nC:80°\nD:100°"
FUNCTION = "Is it a function?\nChoices:\nA:This is a function\nB:This is not a function"

# response, gold, question, multiple choice, score, whether an answer is found
MATHVERSE = (
    ("B", "B", ANGLE, True, 1, True),
    ("\\boxed{B}", "B", ANGLE, True, 1, True),
    ("(B)", "B", ANGLE, True, 1, True),
    ("The correct choice is (B) 60°.", "B", ANGLE, True, 1, True),
    ("Therefore, the answer is: B", "B", ANGLE, True, 1, True),
    ("B:60°", "B", ANGLE, True, 1, True),
    ("60°", "B", ANGLE, True, 1, True),
    ("\\boxed{60^\\circ}", "B", ANGLE, True, 1, True),
    ("\\boxed{60}", "B", ANGLE, True, 1, True),
    ("The angle is 60 degrees.", "B", ANGLE, True, 1, True),
    ("\\boxed{80}", "B", ANGLE, True, 0, True),
    ("\\boxed{C}", "B", ANGLE, True, 0, True),
    ("The angle cannot be found.", "B", ANGLE, True, 0, False),
    ("", "B", ANGLE, True, 0, False),
    ("\\boxed{B}", "(B)", ANGLE, True, 1, True),  # a gold letter in brackets
    ("(B)", "(B)", ANGLE, True, 1, True),
    ("This is not a function", "B", FUNCTION, True, 1, True),
    ("This is a function", "B", FUNCTION, True, 0, True),
    ("It passes the test. This is a function.", "A", FUNCTION, True, 1, True),
    ("\\boxed{C\\text{ and }D}", "C\nD", "Choose two.\nChoices:\nA:1\nB:2\nC:3\nD:4", False, 1, True),
    ("A and C", "C\nD", "Choose two.\nChoices:\nA:1\nB:2\nC:3\nD:4", False, 0, False),
    ("\\boxed{A, C}", "C\nD", "Choose two.\nChoices:\nA:1\nB:2\nC:3\nD:4", False, 0, True),
    ("\\boxed{False}", "False", "True or false?", True, 1, True),
    ("\\boxed{True}", "False", "True or false?", True, 0, True),
    ("\\boxed{90^\\circ}", "090^\\circ T", "Bearing?", False, 1, True),
    ("\\boxed{053^\\circ T}", "053 ^\\circ T", "Bearing?", False, 1, True),
    ("14", "14", "Find L.", False, 1, True),
    ("So the length, rounded down, is 14 cm.", "14", "Find L.", False, 1, True),
    ("L ≈ 14.32\n\nL = 14 cm\n\nFinal answer: 14", "14", "Find L.", False, 1, True),
    ("Therefore, the longest straw is:\n\n14", "14", "Find L.", False, 1, True),
    ("The value is about 22.3 meters.", "22.3", "Find d.", False, 1, True),
    ("\\boxed{22.4}", "22.3", "Find d.", False, 0, True),
    ("I cannot say without the figure.", "14", "Find L.", False, 0, False),
    ("\\boxed{9\\pi}", "Area $=9 \\pi \\mathrm{cm}^{2}$", "", False, 1, True),
    ("\\boxed{9\\pi \\text{ cm}^2}", "Area $=9 \\pi \\mathrm{cm}^{2}$", "", False, 1, True),
    ("\\boxed{A = 9\\pi}", "Area $=9 \\pi \\mathrm{cm}^{2}$", "", False, 1, True),
    ("\\boxed{3\\pi}", "Area $=9 \\pi \\mathrm{cm}^{2}$", "", False, 0, True),
    ("\\boxed{50.27}", "Circumference $=50.27 \\mathrm{~cm}$", "", False, 1, True),
    ("The circumference is 50.27 cm.", "Circumference $=50.27 \\mathrm{~cm}$", "", False, 1, True),
    ("\\boxed{5}", "$5=s$", "", False, 1, True),
    ("\\boxed{s=5}", "$5=s$", "", False, 1, True),
    ("\\boxed{\\frac{1}{5}}", "Slope $=\\frac{1}{5}$", "", False, 1, True),
    ("\\boxed{0.2}", "Slope $=\\frac{1}{5}$", "", False, 1, True),
    ("\\boxed{(20,10)}", "Center $=(20,10)$", "", False, 1, True),
    ("\\boxed{(10,20)}", "Center $=(20,10)$", "", False, 0, True),
    ("\\boxed{4371.46}", "S.A. of rectangular prism $=4371.46 \\mathrm{~mm}^{2}$", "", False, 1, True),
    ("\\boxed{4371}", "S.A. of rectangular prism $=4371.46 \\mathrm{~mm}^{2}$", "", False, 0, True),
    ("\\boxed{212^\\circ}", "212°T", "", False, 1, True),
    ("\\boxed{212°T}", "212°T", "", False, 1, True),
    ("\\boxed{212}", "212°T", "", False, 1, True),
    ("\\boxed{315^\\circ}", "315^\\circT", "", False, 1, True),
    ("\\boxed{S 23.5^\\circ W}", "S 23.5 ^\\circ W", "", False, 1, True),
    ("\\boxed{N 34^\\circ W}", "N 34° W", "", False, 1, True),
    ("\\boxed{N 34^\\circ E}", "N 34° W", "", False, 0, True),
    ("\\boxed{118^\\circ}", "118掳T", "", False, 1, True),  # a misread degree sign
    ("\\boxed{35^\\circ}", "35掳", "", False, 1, True),
    ("\\boxed{35}", "35掳", "", False, 1, True),
    ("\\boxed{[-4, 0), (-3, 1]}", "domain: [-4, 0) and range: (-3, 1]", "", False, 1, True),
    ("\\boxed{[-4, 0], (-3, 1]}", "domain: [-4, 0) and range: (-3, 1]", "", False, 0, True),
    ("\\boxed{\\frac{8\\pi}{5}}", "{8}{5} \\pi", "", False, 1, True),  # a lost \frac
    ("\\boxed{-4.9}", "-4.9\n-4.9", "", False, 1, True),
    ("f(x) = -x^2 - 2x + 1", "f(x) = -x^2 - 2x + 1", "", False, 1, True),
    ("The equation is f(x) = -x^2 - 2x + 1", "f(x) = -x^2 - 2x + 1", "", False, 1, True),
    ("\\boxed{(-2, 1)}", "(-2,1]", "", False, 0, True),
    ("\\boxed{0.5 m}", "50cm", "", False, 0, True),  # the judge converts units, the grader does not
)


def test_mmmu() -> None:
    from rethinker.benchmarks.rules.mmmu import score_choice, score_open

    assert len(MMMU_CHOICE) + len(MMMU_OPEN) >= 60
    wrong: list[object] = []
    for response, gold, options, *expected in MMMU_CHOICE:
        outcome = score_choice(response, gold, options)
        if [outcome.score, outcome.extracted, outcome.guessed] != expected:
            wrong.append((response, gold, expected, outcome))
    for response, golds, score in MMMU_OPEN:
        if (opened := score_open(response, golds)).score != score:
            wrong.append((response, golds, score, opened))
    assert not wrong, "\n".join(map(repr, wrong))


def test_mmmu_pro() -> None:
    from rethinker.benchmarks.rules.mmmu import score_pro

    assert len(MMMU_PRO) >= 60
    wrong = []
    for response, gold, options, *expected in MMMU_PRO:
        outcome = score_pro(response, gold, options)
        if [outcome.score, outcome.extracted, outcome.guessed] != expected:
            wrong.append((response, gold, expected, outcome))
    assert not wrong, "\n".join(map(repr, wrong))


def test_emma() -> None:
    from rethinker.benchmarks.rules.emma import score

    assert len(EMMA) >= 60
    wrong = []
    for response, gold, options, *expected in EMMA:
        outcome = score(response, gold, options[ord(gold.upper()) - ord("A")] if options else gold)
        if [outcome.score, outcome.extracted, outcome.guessed] != [*expected, None]:
            wrong.append((response, gold, expected, outcome))
    assert not wrong, "\n".join(map(repr, wrong))


def test_mathverse() -> None:
    from rethinker.benchmarks.rules.mathverse import score

    assert len(MATHVERSE) >= 60
    wrong = []
    for response, gold, question, choice, right, found in MATHVERSE:
        outcome = score(response, gold, question, choice)
        if (outcome.score, outcome.extracted is not None, outcome.guessed) != (right, found, None):
            wrong.append((response, gold, right, outcome))
    assert not wrong, "\n".join(map(repr, wrong))


def test_the_comparison_with_official_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"benchmark": "MathVista", "type": "choice", "question": "Where?\nChoices:\n(A) Rome\n(B) Bonn"}
    fields |= {"gold": "B", "gold_text": "Bonn"}
    answers = [
        fields | {"pid": "1", "answer": "B", "official_correct": True},
        fields | {"pid": "1", "answer": "Bon", "official_correct": True},  # a guess
        fields | {"pid": "2", "answer": "A", "official_correct": True},  # not what the rule says
    ]
    responses = [{"benchmark": "MathVista", "pid": "1", "response": text} for text in ("So B.", "It is Bonn.", "Hm")]
    for name, records in (("answers", answers), ("responses", responses)):
        with gzip.open(tmp_path / name, "wt") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    script = runpy.run_path(str(ROOT / "experiments" / "benchmark_rules" / "agreement.py"))
    script["main"](str(tmp_path / "answers"), str(tmp_path / "responses"))
    *_, disagreement, header, row = capsys.readouterr().out.splitlines()
    assert disagreement.startswith("MathVista choice 2: 'A' for 'B'")
    counts = dict(zip(header.split(), map(int, row.split()[2:]), strict=True))
    assert counts == {
        "answers": 3, "agree": 2, "guessed": 1, "lucky": 1, "responses": 3, "unparsed": 1, "linked": 2, "same": 2,
    }  # fmt: skip
