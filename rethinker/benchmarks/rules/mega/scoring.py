"""Score of a response by the rules that MEGA-Bench gives for its task: parse, one metric a field, mean or minimum.

A metric that cannot read an answer gives 0 (official). Metrics of `UNSUPPORTED` cannot be computed offline and without
a judge; a task that needs one is refused by `fault` and must be counted apart, never as 0.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rethinker.benchmarks.rules.mega import groups, numbers, shapes, texts
from rethinker.benchmarks.rules.mega.planning import reaches_goal, read_world
from rethinker.benchmarks.rules.mega.reading import answer_text, json_fields, unquoted

Metric = Callable[[Any, Any], float]

METRICS: dict[str, Metric] = {
    "exact_str_match": texts.exact,
    "exact_str_match_case_insensitive": texts.exact_any_case,
    "code_result_exact_str_match": texts.exact_code_result,
    "simple_str_match": texts.simple,
    "multi_ref_phrase": texts.any_of_phrases,
    "near_str_match": texts.near,
    "normalized_similarity_damerau_levenshtein": texts.similarity,
    "bleu": texts.bleu,
    "gleu_cn": texts.gleu_chinese,
    "number_rel_diff_ratio": numbers.relative_difference,
    "positive_int_match": numbers.positive_integer,
    "normalized_rmse": numbers.clipped_error,
    "angle_seq_float_rmse": numbers.angle_error,
    "general_single_numerical_match": numbers.one_number,
    "boxed_single_numerical_match": numbers.boxed_number,
    "latex_expr_equality": numbers.latex,
    "text_with_latex_expr_equality": numbers.text_with_latex,
    "set_equality": groups.equal_sets,
    "set_equality_case_insensitive": groups.equal_sets_any_case,
    "str_set_equality_line_break": groups.equal_lines,
    "str_set_equality_comma": groups.equal_comma_parts,
    "set_precision": groups.precision,
    "jaccard_index": groups.jaccard,
    "jaccard_index_case_insensitive": groups.jaccard_any_case,
    "chess_move_list_jaccard_index": groups.chess_moves,
    "longest_common_list_prefix_ratio": groups.common_prefix,
    "sequence_equality": groups.equal_sequences,
    "sequence_equality_case_insensitive": groups.equal_sequences_any_case,
    "sequence_accuracy_case_insensitive": groups.sequence_accuracy,
    "dict_equality": groups.equal_dicts,
    "dict_precision": groups.dict_precision,
    "dict_exact_str_match_agg_recall": groups.dict_recall,
    "dict_set_equality_agg_jaccard": groups.by_key(groups.equal_sets),
    "dict_jaccard_agg_jaccard": groups.by_key(groups.jaccard),
    "dict_nbbox_iou_tuple_agg_jaccard": groups.by_key(shapes.boxes),
    "nbbox_iou_tuple": shapes.boxes,
    "nbbox_iou_single": shapes.box,
    "nbbox_iou_sequence": shapes.box_sequence,
    "xml_nbbox_iou_single": shapes.box_in_tags,
    "xml_norm_point_distance": shapes.point_distance,
    "sequence_coords_similarity": shapes.keypoints,
}
CONTEXT_METRICS = (
    "xml_norm_point_in_bbox",
    "symbolic_planning_test",
)  # judged by the item's context, not a gold answer
UNSUPPORTED = {
    "program_judge": "runs the model's program on test cases; model output is never executed",
    "nli_entailment": "needs an entailment model",
    "geo_proximity_location_dict": "needs a geocoder on the network",
    "constrained_generation": "needs WordNet, which nltk downloads, and a pronouncing dictionary",
    "gpt_4o_as_judge": "needs GPT-4o as the judge",
    "ascii_art_gpt4o_judge": "needs GPT-4o as the judge",
}
PARSERS = ("json", "answer_string", "ascii_answer_string", "verbatim_answer_string", "dummy")


@dataclass(frozen=True, slots=True)
class Scored:
    """``score`` in [0, 1]; ``fields``: by answer field (`numbers.LEFT_OUT` where its metric takes it out);
    ``parsed``: the answer as read, None where no JSON was found and the whole response stood for every field."""

    score: float
    fields: dict[str, float]
    parsed: str | None


def fault(metric_info: Mapping[str, Any], context: Mapping[str, Any]) -> str | None:
    """Why responses to an item cannot be scored here; None where they can.

    Raises `ModuleNotFoundError` where only an optional library is missing.
    """
    if metric_info.get("response_parse_function") not in PARSERS:
        return f"unknown parser {metric_info.get('response_parse_function')!r}"
    if metric_info["aggregation"]["function"] not in ("mean", "min"):
        return f"unknown aggregation {metric_info['aggregation']['function']!r}"
    for metric in _metrics(metric_info).values():
        if metric in UNSUPPORTED:
            return f"{metric}: {UNSUPPORTED[metric]}"
        if metric not in METRICS and metric not in CONTEXT_METRICS:
            return f"{metric}: unknown metric"
        for library in texts.libraries(metric):
            if importlib.util.find_spec(library) is None:
                raise ModuleNotFoundError(f"MEGA-Bench's metric {metric} needs {library}: {texts.EXTRA}")
        if metric == "symbolic_planning_test":
            try:
                read_world(context["domain_pddl"], context["task_pddl"])
            except (KeyError, ValueError, IndexError, TypeError) as error:
                return f"{metric}: the description of the world cannot be read ({error})"
    return None


def score(
    response: str, answer: Mapping[str, Any], metric_info: Mapping[str, Any], context: Mapping[str, Any]
) -> Scored:
    """Score ``response`` against the gold fields ``answer`` of an item that `fault` lets pass."""
    fields, parsed = _read(response, answer, metric_info["response_parse_function"])
    scores: dict[str, float] = {}
    wholes = metric_info.get("global_aux_metrics") or {}
    for field, metric in _metrics(metric_info).items():
        if field in wholes:  # judged on the whole answer
            scores[field] = _measure(metric, fields, dict(answer), context)
        elif field in answer:
            scores[field] = _measure(metric, fields.get(field), unquoted(answer[field]), context)
    weights = metric_info["aggregation"].get("field_weights") or {}
    return Scored(_aggregate(scores, metric_info["aggregation"]["function"], weights), scores, parsed)


def _metrics(metric_info: Mapping[str, Any]) -> dict[str, str]:
    """Metric by field; fields without a metric, and those that the mean weighs with 0, decide nothing."""
    metrics = {**metric_info["field_score_function"], **(metric_info.get("global_aux_metrics") or {})}
    aggregation = metric_info["aggregation"]
    weights = aggregation.get("field_weights") or {}
    mean = aggregation["function"] == "mean"
    return {
        field: metric.lower()
        for field, metric in metrics.items()
        if metric not in (None, "unsupported") and not (mean and weights.get(field) == 0)
    }


def _read(response: str, answer: Mapping[str, Any], parser: str) -> tuple[dict[str, Any], str | None]:
    if parser == "json":
        fields = json_fields(response)
        return ({field: response for field in answer}, None) if fields is None else (fields, str(fields))
    if parser == "dummy":
        return {field: response.strip() for field in answer}, response.strip()
    (field,) = [field for field in answer if not field.startswith("##")]
    kind = {"art": parser == "ascii_answer_string", "verbatim": parser == "verbatim_answer_string"}
    text = answer_text(response, one_line="\n" not in str(answer[field]), **kind)
    return {field: text}, text


def _measure(metric: str, found: Any, gold: Any, context: Mapping[str, Any]) -> float:
    try:
        if metric == "symbolic_planning_test":
            return reaches_goal(found, read_world(context["domain_pddl"], context["task_pddl"]))
        if metric == "xml_norm_point_in_bbox":
            return shapes.point_in_box(found, context["bounding_boxes"])
        value = float(METRICS[metric](found, gold))
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        return 0.0
    return value if value == numbers.LEFT_OUT else min(1.0, max(0.0, value))  # sacrebleu's 100 is 100.00000000000004


def _aggregate(scores: Mapping[str, float], function: str, weights: Mapping[str, float]) -> float:
    counted = {field: value for field, value in scores.items() if value != numbers.LEFT_OUT}
    if not counted:
        return 0.0
    if function == "min":
        return min(counted.values())
    total = sum(weights.get(field, 1) for field in counted)
    return sum(value * weights.get(field, 1) for field, value in counted.items()) / total if total else 0.0
