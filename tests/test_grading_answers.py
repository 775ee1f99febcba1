"""Answers as real models write them: multiple choice, lists of letters, names, units, statements; and gold answers."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rethinker.grading import POOL, check_gold, check_golds, extract_gold, grade, grade_many
from rethinker.grading.gold import mathematics

ABCD = "What is it?\n(A) 12\n(B) 13\n(C) 14\n(D) another number"
LENGTHS = "How long is it?\n(A) $\\frac{5}{3}$ cm\n(B) $\\frac{7}{3}$ cm\n(C) 4 cm\n(D) $2\\sqrt{3}$ cm"
CLOCKS = "Which clock shows the time?\n(A) 20:45\n(B) 10:15\n(C) 6:30"
TWINS = "How many?\n(A) 17\n(B) 19\n(C) 19\n(D) 23"
SHAPES = "Which?\nA. a square\nB. a circle\nC. a square and a circle\nD. none of them"
LETTERS = "Which picture?\n(A) A\n(B) B\n(C) C"
CHINESE = "有多长?\n(A) 3.20米\n(B) 30√{2}海里\n(C) 7厘米\n(D) 50平方米"
HALVES = "Which part?\n(A) $\\frac{1}{2}$\n(B) $0.5\\%$\n(C) 50"
VARIABLES = "Which variable?\n(A) a\n(B) b\n(C) c"
POINTS = "Which point?\n(A) P\n(B) Q\n(C) R"

# kind -> (answer in the box, gold, question, expected)
TABLE: dict[str, list[tuple[str, str, str, bool]]] = {
    "lists of letters": [
        ("A, C", "A, B, C", "", False),
        ("B, A, C", "A, B, C", "", True),
        ("B and D", "A, B and D", "", False),
        ("A, B, D", "A, B and D", "", True),
        ("(B, D, C)", "(B, D, A, C)", "", False),
        ("(B, D, A, C)", "(B, D, A, C)", "", True),
        ("(d, c, a)", "(D, A, C)", "", False),
        ("C, A, B, D", "C, B, D", "", False),
        ("influenza", "influenza A", "", False),
        ("influenza A", "influenza A", "", True),
        ("Group", "Group A", "", False),
        ("Group A", "Group", "", False),
        ("group a", "Group A", "", True),
        ("vitamin deficiency", "vitamin A deficiency", "", False),
        ("a rhombus", "Rhombus", "", True),
        ("rhombus", "A Rhombus", "", True),
        ("A rhombus", "the rhombus", "", True),
        ("A\nD", "A, D", "", True),
    ],
    "signs and points in words": [
        ("-7 kg", "7 kg", "", False),
        ("-2x", "2x", "", False),
        ("-xy", "xy", "", False),
        ("south-west", "South West", "", True),
        ("y-axis", "the y axis", "", True),
        ("1,5 kg", "15 kg", "", False),
    ],
    "several letters": [
        ("(A), (B)", "A", ABCD, False),
        ("(A), (B)", "A", "", False),
        ("(A) and (C)", "A", ABCD, False),
        ("(A),(B),(C),(D)", "A", ABCD, False),
        ("A. 12, B. 13", "A", ABCD, False),
        ("(A) 12 or (B) 13", "A", ABCD, False),
        ("(A) 12 or 13", "A", ABCD, False),
        ("(A) not B", "A", ABCD, False),
        ("A. B. C.", "A", ABCD, False),
        ("A. B. C.", "A", "", False),
        ("[A], [B]", "A", ABCD, False),
        ("A/B", "A", ABCD, False),
        ("A B", "A", ABCD, False),
        ("A: 12 and B: 13", "A", ABCD, False),
        ("either A or B", "A", ABCD, False),
        ("12, 13", "A", ABCD, False),
        ("12 or 13", "A", ABCD, False),
        ("A\nB", "A", ABCD, False),
    ],
    "letter and value": [
        ("(A) 12", "A", ABCD, True),
        ("(A) 12.0", "A", ABCD, True),
        ("(A) 12 cm", "A", ABCD, True),
        ("(A) 99", "A", ABCD, False),
        ("(A) 13 cm", "A", ABCD, False),
        ("(D) 7", "D", ABCD, False),
        ("(D) another number", "D", ABCD, True),
        ("(D) another", "D", ABCD, True),
        (r"\textbf{(B)}\ \frac{7}{3}", "B", LENGTHS, True),
        (r"\textbf{(B)}\ \frac{14}{6}", "B", LENGTHS, True),
        (r"\textbf{(A)}\ \frac{7}{3}", "A", LENGTHS, False),
        (r"(D) \sqrt{12}", "D", LENGTHS, True),
        (r"(D) \sqrt{13}", "D", LENGTHS, False),
        ("(C) 4 cm^2", "C", LENGTHS, False),
        ("(A) 99", "A", "", True),  # nothing says what A is
        ("(A) A", "A", LETTERS, True),
        ("B: B", "B", LETTERS, True),
        ("(B) 49", "B", LETTERS, True),
        ("(B) C", "B", LETTERS, False),
        ("B. circle", "B", SHAPES, True),
        ("B. a square", "B", SHAPES, False),
        ("B. because it is round", "B", SHAPES, True),
        ("B. a circle, as it is round", "B", SHAPES, True),
        ("B. a circle or a square", "B", SHAPES, False),
        ("C. a square and a circle", "C", SHAPES, True),
        ("D. a hexagon", "D", SHAPES, False),
        ("(B)", "13", ABCD, True),
        ("(B) 14", "13", ABCD, False),
        ("(A), (B)", "13", ABCD, False),
    ],
    "lower-case gold letter": [
        ("B", "b", ABCD, True),
        (r"\text{B}", "b", ABCD, True),
        ("b", "b", ABCD, True),
        ("13", "b", ABCD, True),
        ("A", "b", ABCD, False),
        ("B", "b", "", False),
        ("C", "c", VARIABLES, True),
        ("A", "P", POINTS, True),
        ("B", "P", POINTS, False),
    ],
    "options that are letters": [
        ("q", "B", POINTS, True),
        ("Q", "B", POINTS, True),
        ("p", "B", POINTS, False),
        ("B", "B", POINTS, True),
        ("C", "B", POINTS, False),
        ("a", "A", VARIABLES, True),
        ("b", "A", VARIABLES, False),
        ("D", "A", VARIABLES, False),
        ("A", "C", "Which?\n(A) C\n(B) B\n(C) A", False),  # the letter counts, not the text
        ("C", "C", "Which?\n(A) C\n(B) B\n(C) A", True),
    ],
    "letter beside text": [
        ("A (12)", "A", ABCD, True),
        ("A, 12", "A", ABCD, True),
        ("A - 12", "A", ABCD, True),
        ("12 (A)", "A", ABCD, True),
        ("A (13)", "A", ABCD, False),
        ("A, 13", "A", ABCD, False),
        ("13 (A)", "A", ABCD, False),
        ("12 (B)", "A", ABCD, False),
        ("12 (B)", "12", ABCD, False),
        ("B. 12", "12", ABCD, False),
        ("B. not a circle", "B", SHAPES, False),
        ("0.5", "A", HALVES, True),
        ("0.5%", "B", HALVES, True),
        ("50", "C", HALVES, True),
        ("50", "A", HALVES, False),
        ("5", "A", "How long? (A) 5 cm (B) 5 m", False),
        ("5 m", "B", "How long? (A) 5 cm (B) 5 m", True),
    ],
    "options of one text": [
        ("19", "C", TWINS, True),
        ("B", "C", TWINS, True),
        ("C", "B", TWINS, True),
        ("(C) 19", "B", TWINS, True),
        ("A", "C", TWINS, False),
        ("B, C", "C", TWINS, False),
    ],
    "times among options": [
        ("8:45", "A", CLOCKS, False),
        ("8:45 pm", "A", CLOCKS, True),
        ("20:45", "A", CLOCKS, True),
        ("10:15", "B", CLOCKS, True),
        ("06:30", "C", CLOCKS, True),
    ],
    "Chinese units": [
        ("3.20", "A", CHINESE, True),
        ("3.2 m", "A", CHINESE, True),
        ("3.2 cm", "A", CHINESE, False),
        (r"30\sqrt{2}", "B", CHINESE, True),
        ("7", "C", CHINESE, True),
        ("7 cm", "7厘米", "", True),
        ("7 m", "7厘米", "", False),
        ("50", "D", CHINESE, True),
        ("50 m^2", "50平方米", "", True),
        ("120", "120度", "", True),
        (r"120^\circ", "120度", "", True),
        ("8", "8个", "", True),
        ("9", "8个", "", False),
    ],
    "degrees": [
        ("70", r"70*\degree", "", True),
        ("70", r"71*\degree", "", False),
        ("70", "70{degrees}", "", True),
        (r"70^\circ", "70{degrees}", "", True),
        (r"70^\circ", "70掳", "", True),
        ("70", "70掳", "", True),
        (r"250^\circ", "250°T", "", True),
        ("250", "250°T", "", True),
        ("70", "250°T", "", False),
        ("25", r"25{\text{ cm}}", "", True),
    ],
    "names": [
        ("(1, 0)", "(u1, u2) = (1, 0)", "", True),
        ("(0, 1)", "(u1, u2) = (1, 0)", "", False),
        ("(30, 20)", "Centre $=(30, 20)$", "", True),
        ("(4, -5)", "Q(4,-5)", "", True),
        ("Q(4, -5)", "(4,-5)", "", True),
        ("Q(4, 5)", "Q(4,-5)", "", False),
        ("8", "$8=t$", "", True),
        ("8=t", "8", "", True),
        ("9=t", "8", "", False),
        ("t=8", "8=t", "", True),
        ("A = 4\\pi", r"Area $=4 \pi \mathrm{cm}^{2}$", "", True),
        ("A = 5\\pi", r"Area $=4 \pi \mathrm{cm}^{2}$", "", False),
        ("m = -3", "slope =-3", "", True),
        ("b = -3", "slope =-3", "", False),
        ("f(x)=(x-2)^2+1", "h(x)=(x-2)^2+1", "", True),
        ("f(x)=(x-2)^2+1", "f(t)=(x-2)^2+1", "", False),
        ("y = 3", "x = 3", "", False),
        ("80", r"3\alpha+\beta=80", "", False),
        ("80", r"\alpha+\beta=80", "", False),
        ("80", r"\alpha=80", "", True),
        (r"\frac{5}{2}", r"V=\frac{5}{2} W", "", False),
        ("2.5W", r"V=\frac{5}{2} W", "", True),
        (r"V = 2.5 W", r"V=\frac{5}{2} W", "", True),
        ("5", "P = 5 W", "", True),
        ("P = 5 W", "5 W", "", True),
        ("5", "F = 5 N", "", True),
    ],
    "products of digits": [
        ("2(3)", "6", "", True),
        ("(2)(3)", "6", "", True),
        ("(4)(5)", "20", "", True),
        ("(-2)(3)", "-6", "", True),
        ("5(2)", "10", "", True),
        ("2(3)", "5", "", False),
        ("(1) 30 cm", "31 cm", "", False),
        ("(1)30", "31", "", False),
        (r"(1) \frac{1}{2}", "1.5", "", False),
        (r"1 \frac{1}{2}", "1.5", "", True),
        (r"\log_2(8)", "3", "", True),
    ],
    "lists": [
        ("-2.5", "-2.5\n-2.5", "", True),
        ("A and B", "A\nB", "", True),
        ("x = 1, y = 2", "x = 1\ny = 2", "", True),
        ("5", "5\n\\text{cm}", "", True),
        (r"\text{Domain: } [-3, 0), \text{ Range: } (-2, 1]", "domain: [-3, 0) and range: (-2, 1]", "", True),
        ("[-3,0), (-2,1]", "domain: [-3, 0) and range: (-2, 1]", "", True),
        ("range: (-2, 1], domain: [-3, 0)", "domain: [-3, 0) and range: (-2, 1]", "", True),
        ("(-2,1], [-3,0)", "domain: [-3, 0) and range: (-2, 1]", "", False),
        ("domain: (-2, 1], range: [-3, 0)", "domain: [-3, 0) and range: (-2, 1]", "", False),
        (r"growing on (1,\infty), falling on (-\infty,1)", r"Falling at (-\infty,1), growing at (1,\infty)", "", True),
        (r"growing on (-\infty,1), falling on (1,\infty)", r"Falling at (-\infty,1), growing at (1,\infty)", "", False),
        ("['Spiders']", "Spiders", "", True),
        ('"Spiders"', "spiders", "", True),
        ("['Spiders', 'Ants']", "Spiders", "", False),
        ("[20]", "20", "", True),
        ("[7]", "7", "", True),
        ("[2, 5]", "2 & 5", "", True),
        ("2, 5", "2 & 5", "", True),
        ("2", "2 & 5", "", False),
    ],
    "statements": [
        ("x is 7", "7", "", True),
        ("angle AOB is 40 degrees", r"40^\circ", "", True),
        (r"\angle AOB is 40^\circ", "40", "", True),
        ("The perimeter of the kite is 12 + 12 = 24.", "24", "", True),
        ("The perimeter of the kite is 24 cm", "24", "", True),
        ("The perimeter of the kite is 25 cm", "24", "", False),
        ("Area: 24", "24", "", True),
        ("x: 24", "24", "", True),
        (r"domain: (-\infty, 2)", r"(-\infty, 2)", "", True),
        ("Yes. No.", "yes", "", False),
        ("Yes, as it is larger", "yes", "", True),
        ("The value is not 24", "24", "", False),
        ("The value is 24 or 25", "24", "", False),
        ("The value is less than 24", "24", "", False),
        ("The function reaches its value first at x = 4.0", "5", "", False),
        ("The function reaches the value 3 first at x = 4.0", "4", "", True),
        ("The function reaches the value 3 first at x = 4.0", "3", "", False),
        ("The function does not reach the value 3 at x = 4.0", "4", "", False),
        ("The train passes the second station after 3 + 4 hours and then waits", "7", "", False),
    ],
    "units of products, and variables": [
        (r"5 N \cdot m", "5", "", True),
        ("5 N m", "5 N·m", "", True),
        ("5 Nm", "5 J", "", False),
        ("3 m/s", r"3 m s^{-1}", "", True),
        ("3 m s^{-2}", "3 m/s^2", "", True),
        ("2 kWh", "2", "", True),
        ("5ab", "5", "", False),  # math-verify alone would drop these letters as units
        ("5 a b", "5", "", False),
        ("3st", "3", "", False),
        ("7 less", "7", "", False),
    ],
    "fractions": [
        (r"\frac{4}{\pi}-1", r"\frac{4-\pi}\pi", "", True),
        (r"\frac{(n-1)(n-2)}{4n-2}", r"\frac{n^2-3n+2}{4n-2}", "", True),
        (r"\frac{n^2-3n+2}{4n-3}", r"\frac{n^2-3n+2}{4n-2}", "", False),
        (r"\frac{5}{2k}", r"\frac{5}{2m}", "", False),
    ],
    "more than one answer": [
        ("3, 4", "3", "", False),
        ("3 or 4", "3", "", False),
        ("3 and 4", "3", "", False),
        ("3 (or 4)", "3", "", False),
        ("3; 4", "3", "", False),
        ("3\n4", "3", "", False),
        (r"3 \\ 4", "3", "", False),
        ("3/4", "3", "", False),
        ("3-4", "3", "", False),
        ("3~4", "3", "", False),
        ("[3, 4]", "3", "", False),
        (r"\{3, 4\}", "3", "", False),
        (r"x \in \{3, 4\}", "3", "", False),
        ("3 | 4", "3", "", False),
        ("not 4 but 3", "3", "", False),
        ("4, no, 3", "3", "", False),
        ("x=4 or x=3", "3", "", False),
        ("x>2", "3", "", False),
        (r"\pm 3", "3", "", False),
        ("4=3", "3", "", False),
        ("yes and no", "yes", "", False),
        ("yes or no", "yes", "", False),
        ("red or blue", "blue", "", False),
    ],
}  # fmt: skip
CASES = [(kind, *case) for kind, cases in TABLE.items() for case in cases]


@pytest.mark.parametrize(("kind", "answer", "gold", "question", "expected"), CASES)
def test_table(kind: str, answer: str, gold: str, question: str, expected: bool) -> None:
    verdict = grade(f"\\boxed{{{answer}}}", gold, question=question)
    assert verdict.correct is expected, f"{kind}: {verdict}"
    assert not verdict.reason.startswith("error:"), verdict


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("The number would fall.", "it would fall"),  # wording: only a judge model could say
        ("Adult ant population would fall", "Adults ant population would fall"),
        ("2.84", "2.8"),  # a gold answer with one decimal may be exact: no rounding
    ],
)
def test_refused_by_design(answer: str, gold: str) -> None:
    assert not grade(f"\\boxed{{{answer}}}", gold).correct


def test_a_verdict_does_not_depend_on_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [(f"\\boxed{{{answer}}}", gold, question) for _, answer, gold, question, _ in CASES]
    here = grade_many(items)
    monkeypatch.setattr("rethinker.grading.SHORT_ANSWER_CHARS", -1)
    assert grade_many(items) == here


@pytest.mark.parametrize(
    ("gold", "fault"),
    [
        ("12", None),
        ("B", None),
        ("a rhombus", None),
        (r"\frac{1}{2}", None),
        (r"2\sqrt{3}", None),
        (r"70*\degree", None),
        ("70{degrees}", None),
        ("(u1, u2) = (1, 0)", None),
        ("Q(4,-5)", None),
        ("$8=t$", None),
        ("domain: [-3, 0) and range: (-2, 1]", None),
        (r"(-\infty, 3] \cup [4, 5)", None),
        ("x^2+2x+1", None),
        ("y = 2x + 1", None),
        ("3:4", None),
        ("20:45", None),
        (r"\angle ABC = \angle 1", None),
        (r"AB \parallel CD", None),
        ("7厘米", None),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", None),
        (r"\frac { 7 } { 3 }", None),
        (r"\frac{n^2-3n+2}{4n-2}", None),  # no newtons in it
        (r"v=\frac{M(h^{2}+a^{2})}{2k}", None),
        (r"\frac{4-\pi}\pi", None),
        (r"x=3y \\", None),
        (r"{7}{3} \pi", "a lost \\frac"),
        ("\x0crac{7}{3}", "control character"),
        ("5\times 3", "control character"),
        (r"\left(", "the gold answer"),
        ("x +", "the gold answer"),
        ("@#", "the gold answer"),
        (r"\frac{}{}", "the gold answer"),
    ],
)
def test_gold_answers_that_cannot_be_read_are_found_when_data_is_loaded(gold: str, fault: str | None) -> None:
    found = check_gold(gold)
    assert (found is None) if fault is None else (found is not None and fault in found), found
    if fault is None:
        assert grade(f"\\boxed{{{extract_gold(gold)}}}", gold).correct


def test_plain_gold_answers_need_no_worker_and_others_one_question_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for gold in ("12", "-3.5 cm", "B", "a rhombus", "3/4", r"\frac{3}{4}", "50%", "AB", r"\angle ABC", "1, 2", "5 = s"):
        assert mathematics(gold) == (), gold
    read = POOL.read
    asked: list[str] = []
    monkeypatch.setattr(POOL, "read", lambda latex, timeout_s: asked.append(latex) or read(latex, timeout_s))
    golds = ["12", r"\sqrt{101} x", r"\sqrt{101} x", "y +", r"\sqrt{101} x"] * 20  # none of them asked before
    faults = check_golds(golds)
    assert len(asked) == 2
    assert [fault is None for fault in faults] == [True, True, True, False, True] * 20
    assert check_golds([]) == []


def test_a_grader_that_does_not_start_is_no_fault_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from rethinker.grading import pool as module

    POOL.close()
    monkeypatch.setattr(module, "WORKER", module.WORKER.with_name("missing.py"))
    with pytest.raises(RuntimeError, match="did not start"):
        check_gold(r"\sqrt{103} y")


def test_what_no_pattern_foresees_is_an_error_and_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process as in a worker: one strange answer must not end a run of days."""

    def crash(*_: object) -> tuple[bool, str]:
        raise ValueError("strange")

    monkeypatch.setattr("rethinker.grading.equivalent", crash)  # here only: the worker has the real one
    assert grade(r"\boxed{4.0}", "4").correct


_WORDS = (
    "A", "B", "(A)", "(B)", "A.", "12", "13", "cm", "\\frac{1}{2}", "=", "x", "is", "and", "or", ",", ":", "not", "the",
    "a", "\n", "[", "]", "(", ")", "{", "}", "'", '"', "米", "°", "-", "&", "\\alpha", "9:30", "pm", "domain",
)  # fmt: skip
_TEXT = st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join)
_QUIET = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@_QUIET
@given(_TEXT, _TEXT, st.sampled_from(["", ABCD, SHAPES, CLOCKS, TWINS]))
def test_grade_never_raises_and_no_gold_answer_is_refused(answer: str, gold: str, question: str) -> None:
    assert grade(f"\\boxed{{{answer}}}", gold, question=question, timeout_s=1.0).reason
    if check_gold(gold) is None:
        assert grade(f"\\boxed{{{extract_gold(gold)}}}", gold, question=question).correct


@_QUIET
@given(_TEXT, st.sampled_from([("12", ""), ("x = 12", ""), ("A", ABCD), ("B", SHAPES)]))
def test_a_second_letter_or_number_is_never_right(answer: str, wanted: tuple[str, str]) -> None:
    gold, question = wanted
    for more in (", 77", " or 77", ", (C)", " and (C)"):
        verdict = grade(f"\\boxed{{{answer} {gold}{more}}}", gold, question=question, timeout_s=1.0)
        assert not verdict.correct, verdict
