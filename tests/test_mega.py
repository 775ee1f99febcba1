"""MEGA-Bench's rules on hand-made responses, its rows in the data set's schema, and its macro mean over tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import POLICY
from PIL import Image
from toy_benchmark import Engine, asking, settings

from rethinker.benchmarks.mega import EXAMPLE_IMAGES, MegaBench
from rethinker.benchmarks.rules import mega
from rethinker.benchmarks.rules.mega import reading
from rethinker.benchmarks.running import run_tasks
from rethinker.benchmarks.sources import Source
from rethinker.benchmarks.tasks import load_task
from rethinker.rundir.atomic import read_json


def info(metrics, parser="answer_string", function="mean", **weights):
    metrics = {"answer": metrics} if isinstance(metrics, str) else metrics
    return {
        "field_score_function": metrics,
        "aggregation": {"function": function, "field_weights": {**dict.fromkeys(metrics, 1), **weights}},
        "response_parse_function": parser,
    }


# (metric, response, gold answer, score); one field, parsed as text behind "Answer:".
ONE_FIELD = [
    # where the answer stands
    ("exact_str_match", "Answer: B", "B", 1),
    ("exact_str_match", "B", "B", 1),  # no mark: the whole response
    ("exact_str_match", "I think it is B", "B", 0),  # its first letter is I
    ("exact_str_match", "Answer: A\nNo, wait.\nAnswer: B", "B", 1),  # the last mark counts
    ("exact_str_match", "the answer: B", "B", 1),
    ("exact_str_match", "**Answer: B**", "B", 1),
    ("exact_str_match", "**Answer:** B", "B", 0),  # quirk: bold around the mark alone loses the answer
    ("exact_str_match", "Answer: B\n\nThe river is the longest.", "B", 1),  # first paragraph
    ("exact_str_match", 'Answer: "left"', "left", 1),  # quotes of a literal
    ("exact_str_match", "Answer: 'left", "left", 0),
    ("exact_str_match", "Answer:\n```\nleft\n```", "left", 1),
    ("exact_str_match", "\\boxed{left}", "left", 0),  # a box is nothing here
    ("exact_str_match", "", "left", 0),
    # single letters
    ("exact_str_match", "Answer: (B)", "B", 1),
    ("exact_str_match", "Answer: B. The cat", "B", 1),
    ("exact_str_match", "Answer: Because", "B", 1),  # quirk: any word with that first letter
    ("exact_str_match", "Answer: b", "B", 0),
    ("exact_str_match_case_insensitive", "Answer: b", "B", 1),
    ("exact_str_match", "Answer: 12", "12", 1),
    ("exact_str_match", "Answer: 12.0", "12", 0),
    ("code_result_exact_str_match", "Answer: 1 2", "```\n1 2\n```", 1),
    # lenient strings
    ("simple_str_match", "Answer: New-York", "new york", 1),
    ("simple_str_match", "Answer: 1.5", "15", 1),  # quirk: dots do not count
    ("simple_str_match", "Answer: New York City", "new york", 0),
    ("multi_ref_phrase", "Answer: the florida", "Tampa, The Florida", 1),
    ("multi_ref_phrase", "Answer: Miami", "Tampa, Florida", 0),
    ("multi_ref_phrase", "Answer: 24", "24", 1),
    ("multi_ref_phrase", "Answer: 坦帕", "坦帕，佛州", 1),
    ("near_str_match", "Answer: The Café Müller", "cafe muller", 1),
    ("near_str_match", "Answer: hello wurld", "hello world", 1 - 1 / 11),
    ("near_str_match", "Answer: hello", "goodbye", 0),
    ("normalized_similarity_damerau_levenshtein", "Answer: ab", "ba", 0.5),  # a swap is one edit
    ("bleu", "Answer: the cat sat on the mat", "the cat sat on the mat", 1),
    ("bleu", "Answer: dog", "the cat sat on the mat", 0),
    ("gleu_cn", "Answer: 今天天气很好", "今天天气很好", 1),
    # numbers
    ("general_single_numerical_match", "Answer: 101", "100", 1),  # within 1 %
    ("general_single_numerical_match", "Answer: 101.1", "100", 0),
    ("general_single_numerical_match", "Answer: x = 99", "x = 100", 1),
    ("general_single_numerical_match", "Answer: $\\frac{1}{3}$", "0.333", 1),
    ("general_single_numerical_match", "Answer: 2\\pi", "6.28", 1),
    ("general_single_numerical_match", "Answer: 50%", "0.5", 1),
    ("general_single_numerical_match", "Answer: 1,000", "1000", 1),
    ("general_single_numerical_match", "Answer: \\sqrt{16}", "4", 1),
    ("general_single_numerical_match", "Answer: $\\frac{\\sqrt{3}}{2}$", "0.866", 1),
    ("general_single_numerical_match", "Answer: \\log_{2}{8}", "3", 1),
    ("general_single_numerical_match", "Answer: -5", "5", 0),
    ("general_single_numerical_match", "Answer: 5 apples", "5apples", 1),  # no number: as strings
    ("general_single_numerical_match", "Answer: 9**9**9**9", "1", 0),
    ("general_single_numerical_match", "Answer: __import__('os').getpid()", "1", 0),
    ("boxed_single_numerical_match", "so \\boxed{\\frac{5}{3}}", "\\boxed{1.667}", 1),
    ("number_rel_diff_ratio", "Answer: 90", "100", 0.9),
    ("number_rel_diff_ratio", "Answer: 300", "100", 0),
    ("number_rel_diff_ratio", "Answer: about 90", "100", 0),
    ("normalized_rmse", "Answer: 0.55", "0.5", 0.5),
    ("normalized_rmse", "Answer: 0.9", "0.5", 0),
    ("angle_seq_float_rmse", "Answer: [10, 20]", "[12, 24]", 0.7),
    ("angle_seq_float_rmse", "Answer: [10]", "[12, 24]", 0),
    ("latex_expr_equality", "Answer: (x+1)^2", "x^2+2x+1", 1),
    ("latex_expr_equality", "Answer: x^2+1", "x^2+2x+1", 0),
    ("text_with_latex_expr_equality", "Answer: The sum is $2+x$.", "the sum is $x+2$", 1),
    ("text_with_latex_expr_equality", "Answer: The product is $2+x$.", "the sum is $x+2$", 0),
    # sets and sequences
    ("set_equality", "Answer: [2, 1]", "[1, 2]", 1),
    ("set_equality", "Answer: 2, 1", "[1, 2]", 1),
    ("set_equality", "Answer: [1, 2, 3]", "[1, 2]", 0),
    ("set_equality", "Answer: b, a", "a, b", 1),
    ("set_equality", "Answer: [a, b", "a, b", 0),
    ("set_equality_case_insensitive", "Answer: B, a", "A, b", 1),
    ("str_set_equality_line_break", "Answer: b\nA", "a\\nB", 1),
    ("str_set_equality_comma", "Answer: none, A", "a, NONE", 1),
    ("jaccard_index", "Answer: [1, 2, 3]", "[2, 3, 4]", 0.5),
    ("jaccard_index_case_insensitive", "Answer: A, b", "a, c", 1 / 3),
    ("jaccard_index_case_insensitive", "Answer: [('A b', 'c')]", "[('ab', 'C.')]", 1),
    ("set_precision", "Answer: [1, 5]", "[1, 2, 3]", 0.5),
    ("chess_move_list_jaccard_index", "Answer: Qxf7#, Nf3!", "Nf3, Qxf7", 1),
    ("longest_common_list_prefix_ratio", "Answer: [1, 2, 9]", "[1, 2, 3, 4]", 0.5),
    ("sequence_equality", "Answer: [1, 2]", "[1, 2]", 1),
    ("sequence_equality", "Answer: [2, 1]", "[1, 2]", 0),
    ("sequence_equality_case_insensitive", "Answer: a, B", "A, b", 1),
    ("sequence_accuracy_case_insensitive", "Answer: a, x", "A, b", 0.5),
    ("sequence_accuracy_case_insensitive", "Answer: a", "A, b", 0),
    # dicts
    ("dict_equality", "Answer: {'a': 1}", '{"a": 1}', 1),
    ("dict_precision", 'Answer: {"a": "1", "b": "2"}', '{"a": "1"}', 0.5),
    ("dict_exact_str_match_agg_recall", 'Answer: {"a": "1"}', '{"a": "1", "b": "2"}', 0.5),
    ("dict_set_equality_agg_jaccard", 'Answer: {"a": [2, 1]}', '{"a": [1, 2], "b": [3]}', 0.5),
    ("dict_jaccard_agg_jaccard", 'Answer: {"a": [1]}', '{"a": [1, 2]}', 0.5),
    ("dict_nbbox_iou_tuple_agg_jaccard", 'Answer: {"a": [[0, 0, 1, 1]]}', '{"a": [[0, 0, 1, 0.5]]}', 0.5),
    # boxes and points
    ("nbbox_iou_tuple", "Answer: (0, 0, 1, 1)", "[(0, 0, 1, 0.5)]", 0.5),
    ("nbbox_iou_tuple", "Answer: upper left", "[(0, 0, 1, 0.5)]", 0),
    ("nbbox_iou_single", "Answer: (0, 0, 1, 1)", "(0, 0, 1, 0.5)", 0.5),
    ("nbbox_iou_sequence", "Answer: [(0, 0, 1, 1), (0, 0, 1, 1)]", "[(0, 0, 1, 1), (0, 0, 0.5, 1)]", 0.75),
    ("nbbox_iou_sequence", "Answer: [(0, 0, 1, 1)]", "[(0, 0, 1, 1), (0, 0, 0.5, 1)]", 0),
    ("xml_nbbox_iou_single", "Answer: <box>0, 0, 1, 1</box>", "<box>0, 0, 1, 0.5</box>", 0.5),
    ("xml_norm_point_distance", "Answer: <point>0.5, 0.1</point>", "<point>0.5, 0.5</point>", 0.6),
    ("xml_norm_point_distance", "Answer: <point>5, 1</point>", "<point>0.5, 0.5</point>", 0),
    ("sequence_coords_similarity", "Answer: [(0, 0), (1, 1)]", "[(0, 0), (1, 1)]", 1),
    ("sequence_coords_similarity", "Answer: [(0, 0.1)]", "[(0, 0)]", math.exp(-1 / math.sqrt(2))),
]


def test_one_field():
    assert len(ONE_FIELD) >= 60
    assert {metric for metric, *_ in ONE_FIELD} == set(mega.METRICS) - {"positive_int_match"}
    wrong = []
    for metric, response, gold, expected in ONE_FIELD:
        assert mega.fault(info(metric), {}) is None
        score = mega.score(response, {"answer": gold}, info(metric), {}).score
        if not math.isclose(score, expected, abs_tol=1e-9):
            wrong.append((metric, response, gold, score))
    assert not wrong


MARKS = "Answer: ** * { } [ ] ( ) ' , : a 1 - 1e999 nan None ``` json <box> </box> <point> </point> \\boxed{ % /0 é"
PIECES = st.lists(st.sampled_from((*MARKS.split(), '"', " ", "\n")), max_size=14).map("".join)


@given(PIECES)
def test_no_text_is_an_error_and_every_score_is_a_share(text):
    for metric, _, gold, _ in ONE_FIELD[::3]:
        if metric.endswith("latex_expr_equality"):  # worker processes: the grader's own tests do this
            continue
        for parser in ("answer_string", "json", "verbatim_answer_string"):
            assert 0 <= mega.score(text, {"answer": gold}, info(metric, parser), {}).score <= 1


# (response, gold fields, metrics by field, aggregation, weights, score, whether JSON was found)
FIELDS = [
    ('{"a": "x", "b": "y"}', {"a": "x", "b": "z"}, "exact_str_match", "mean", {}, 0.5, True),
    ('{"a": "x", "b": "y"}', {"a": "x", "b": "z"}, "exact_str_match", "min", {}, 0, True),
    ('{"a": "x", "b": "y"}', {"a": "x", "b": "z"}, "exact_str_match", "mean", {"a": 3}, 0.75, True),
    ('{"a": "x", "b": "y"}', {"a": "x", "b": "z"}, "exact_str_match", "mean", {"b": 0}, 1, True),
    ('First {"a": "q"}, no: {"a": "x"} it is.', {"a": "x"}, "exact_str_match", "mean", {}, 1, True),
    ('```json\n{\n "a": "x"\n}\n```', {"a": "x"}, "exact_str_match", "mean", {}, 1, True),
    ('Answer: {"a": "x"}', {"a": "x"}, "exact_str_match", "mean", {}, 1, True),
    ('Answer: {\n"a": "x"\n}', {"a": "x"}, "exact_str_match", "mean", {}, 0, False),  # quirk: one line
    ("{'a': 'x'}", {"a": "x"}, "exact_str_match", "mean", {}, 1, True),
    ("{'a': true}", {"a": "True"}, "exact_str_match", "mean", {}, 1, True),
    ('{"a": "[1, 2]"}', {"a": "[2, 1]"}, "set_equality", "mean", {}, 1, True),  # a list inside a string
    ('{"a": "{not}"}', {"a": "{not}"}, "exact_str_match", "mean", {}, 1, True),  # braces inside a string
    ('a 5" screen: {"a": "x"}', {"a": "x"}, "exact_str_match", "mean", {}, 1, True),
    ('{oh 5" {"a": "x"}', {"a": "x"}, "exact_str_match", "mean", {}, 1, True),
    ("{}", {"a": "x"}, "exact_str_match", "mean", {}, 0, False),
    ("x", {"a": "x"}, "exact_str_match", "mean", {}, 1, False),  # no JSON: the response stands for every field
    ('{"a": "x"', {"a": "x"}, "exact_str_match", "mean", {}, 0, False),
    ('{"b": "x"}', {"a": "x"}, "exact_str_match", "mean", {}, 0, True),
    ('{"a": "0", "b": "3"}', {"a": "0", "b": "4"}, "positive_int_match", "mean", {}, 0, True),  # 0 for 0 is left out
    ('{"a": "0", "b": "4"}', {"a": "0", "b": "4"}, "positive_int_match", "mean", {}, 1, True),
    ("[" * 50_000, {"a": "x"}, "exact_str_match", "mean", {}, 0, False),
    ("{" * 9_000 + "}" * 9_000, {"a": "x"}, "exact_str_match", "mean", {}, 0, False),
    ('{"a": ' + "-" * 15_000 + "1}", {"a": "x"}, "exact_str_match", "mean", {}, 0, False),
]


def test_json_fields():
    for response, gold, metric, function, weights, expected, found in FIELDS:
        rule = info(dict.fromkeys(gold, metric), "json", function, **weights)
        scored = mega.score(response, gold, rule, {})
        assert (scored.score, scored.parsed is not None) == (pytest.approx(expected), found), response[:60]


def test_metrics_that_need_more_than_text_are_refused_and_a_weight_of_0_needs_none():
    for metric in mega.UNSUPPORTED:
        assert metric in str(mega.fault(info(metric), {}))
    assert "unknown metric" in str(mega.fault(info("telepathy"), {}))
    assert mega.fault(info({"a": "simple_str_match", "b": "nli_entailment"}, "json", b=0), {}) is None
    assert mega.fault(info({"a": "simple_str_match", "b": "nli_entailment"}, "json", "min", b=0), {}) is not None


def test_ascii_art_and_verbatim_answers_keep_their_spaces():
    art = "Answer:\n```\n  /\\\n /  \\  \n```"
    assert reading.answer_text(art, one_line=False, art=True) == "  /\\\n /  \\"
    assert reading.answer_text(art, one_line=False, verbatim=True) == "  /\\\n /  \\  "
    assert reading.answer_text(art, one_line=False) == "/\\\n /  \\"


DOMAIN = """(define (domain blocks) (:predicates (on ?x ?y) (held ?x) (empty))
 (:action take :parameters (?x - block ?y - block) :precondition (and (on ?x ?y) (empty))
  :effect (and (held ?x) (not (on ?x ?y)) (not (empty)) (increase (total-cost) 1)))
 (:action put :parameters (?x ?y) :precondition (held ?x) :effect (and (on ?x ?y) (empty) (not (held ?x)))))"""
TASK = "(define (problem p) (:init (on a b) (empty) (= (total-cost) 0)) (:goal (and (on a c))))  ; one move"


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("(take a b)\n(put a c)", 1),
        ("Here it is:\n(take a b)\n1. nothing\n(put a c)", 1),  # remarks are not actions
        ("(take a c)\n(put a c)", 0),  # a precondition fails
        ("(take a b)", 0),  # the goal is not reached
        ("(take a b)\n(fly a c)", 0),
        ("(take a)\n(put a c)", 0),
        ("", 0),
        ("(", 0),
    ],
)
def test_plans_are_carried_out_on_a_symbolic_world(plan, expected):
    rule, context = info("symbolic_planning_test", "verbatim_answer_string"), {"domain_pddl": DOMAIN, "task_pddl": TASK}
    assert mega.fault(rule, context) is None
    assert mega.score(plan, {"answer": ""}, rule, context).score == expected
    conditional = DOMAIN.replace("(held ?x) (not (on", "(when (empty) (held ?x)) (not (on")
    assert "when" in str(mega.fault(rule, {**context, "domain_pddl": conditional}))


def test_a_point_counts_in_any_of_the_accepted_boxes():
    context = {"bounding_boxes": ["(0, 0, 0.2, 0.2)", "(0.5, 0.5, 1, 1)"]}
    rule = info("xml_norm_point_in_bbox")
    for response, expected in (
        ("<point>0.6, 0.6</point>", 1),
        ("<point>0.3, 0.3</point>", 0),
        ("<point>0.6, 0.6</point> or <point>0.1, 0.1</point>", 0),
        ("0.6, 0.6", 0),
    ):
        assert mega.score(response, {"answer": ""}, rule, context).score == expected


def row(number, task="count", metrics=None, **columns):
    return {
        "id": str(number),
        "task_name": task,
        "task_description": "Count the dots.",
        "global_media": "[]",
        "example_text": "Example Question: <image> How many?\nExample Response: Answer: 3",
        "example_media": "['./data/count/example.png']",
        "query_text": "Question: <image> How many?",
        "query_media": "['./data/count/query.png']",
        "answer": "{'answer': '4'}",
        "metric_info": str(metrics or info("exact_str_match")),
        "eval_context": "{}",
        **columns,
    }


def written(folder: Path, rows) -> Source:
    (folder / "core").mkdir(parents=True)
    (folder / "data" / "count").mkdir(parents=True)
    for name in ("example", "query"):
        Image.new("RGB", (8, 8)).save(folder / "data" / "count" / f"{name}.png")
    pq.write_table(pa.Table.from_pylist(rows), folder / "core" / "test-00000-of-00001.parquet")
    return Source(str(folder))


def test_rows_in_the_data_sets_schema(tmp_path):
    many = [f"./data/count/{n}.png" for n in range(6)]
    source = written(
        tmp_path,
        [
            row(1),
            row(2, example_text="<image>" * 6 + "Answer: 3", example_media=str(many)),
            row(3, query_text="How many?"),  # an image without its mark comes first
            row(
                4,
                task="write",
                metrics=info("program_judge"),
                query_text="<video> <image> Go",
                query_media="['a.MP4', 'b.png']",
            ),
            row(5, task="write", metrics=info("program_judge")),
        ],
    )
    (tmp_path / "all_task_meta.json").write_text(json.dumps({"count": {"output_format": "exact_text", "skills": []}}))
    bench = MegaBench()
    first, second, third, video, program = bench.items(source, "core")
    assert (
        first.question.index("Count") < first.question.index("Example Question") < first.question.index("Question: <")
    )
    assert [Path(path).name for path in first.images] == ["example.png", "query.png"]
    assert all(Path(path).is_file() for path in first.images)
    assert second.question.count("<image>") == len(second.images) == EXAMPLE_IMAGES + 1
    assert third.question.endswith("<image>How many?")
    assert first.groups["task"] == ("count",) and first.groups["output_format"] == ("exact_text",)
    assert bench.prompt(first, "official") == first.question
    assert json.loads(json.dumps(first.extra)) == first.extra  # as results store it

    assert bench.score(first, "Answer: 4", "official").score == 1
    assert bench.score(first, "so \\boxed{4}", "official").score == 0
    assert bench.score(first, "so \\boxed{4}", "boxed").score == 1
    assert bench.score(first, "Answer: 4", "boxed").extracted is None
    for item in (video, program):
        for protocol in bench.protocols:
            verdict = bench.score(item, "Answer: 4", protocol)
            assert verdict.score is None and verdict.reason
    assert video.images == () and "<" not in video.question
    assert "video" in video.extra["unsupported"] and "never executed" in program.extra["unsupported"]


def test_an_answer_that_is_not_found_is_unparsed_and_what_the_rule_gives_stands_beside(tmp_path):
    rule = info({"a": "exact_str_match"}, "json")
    source = written(tmp_path, [row(1, metrics=rule, answer="{'a': 'x'}")])
    (item,) = MegaBench().items(source, "core")
    verdict = MegaBench().score(item, "x", "official")
    assert (verdict.score, verdict.extracted, verdict.guessed) == (0.0, None, 1.0)
    boxed = MegaBench().score(item, 'so \\boxed{\\{"a": "x"\\}}', "boxed")
    assert boxed.score == 1.0


def test_the_headline_is_the_mean_over_tasks_and_unsupported_items_are_in_no_mean(tmp_path):
    rows = [row(n) for n in range(3)] + [row(3, task="add"), row(4, task="write", metrics=info("program_judge"))]
    written(tmp_path / "data", rows)
    task = load_task("mega", {"mega": str(tmp_path / "data")})
    engine = Engine(lambda qid, index: "Answer: 4" if qid in ("0", "3", "4") else "**Answer:** 4")
    how = asking()
    run_tasks(tmp_path / "out", [task], how, settings(how), lambda left: (POLICY, engine, {}), chunk=8)
    found = read_json(tmp_path / "out" / "mega-core.json")
    plain = found["modes"]["plain"]["greedy"]
    assert found["mean_over"] == "task" and (found["items"], found["published"]) == (5, 6531)
    assert plain["score"]["value"] == pytest.approx((1 / 3 + 1) / 2)  # over items it would be 1 / 2
    assert (plain["score"]["n"], plain["unparsed"], plain["unsupported"]) == (4, 2, 1)
    (reason,) = found["unsupported"]
    assert reason.startswith("program_judge: runs the model's program") and found["unsupported"][reason] == ["4"]
    assert plain["groups"]["task"]["write"]["value"] is None


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("answer", "{'a': ", "no Python literal"),
        ("answer", "['a']", "not a dict"),
        ("query_media", "[]", "image marks"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, column, value, message):
    source = written(tmp_path, [row(17, **{column: value})])
    with pytest.raises(ValueError, match=f"17: .*{message}"):
        list(MegaBench().items(source, "core"))
