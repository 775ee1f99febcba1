"""Could a policy know that its first look is wrong: scores and rules against counts by hand, what is read off the
policy against a plain forward pass."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from plain_inputs import image_inputs

from rethinker.config import ModelConfig
from rethinker.datasets.io import load_queries
from rethinker.datasets.world.visual_math import make_data
from rethinker.lab.analysis.choice import CELLS, knows_when_wrong
from rethinker.lab.evidence import knowing
from rethinker.lab.evidence.bootstrap import SEED
from rethinker.lab.evidence.tables import TABLES, Tables, load
from rethinker.lab.figures.style import NoData
from rethinker.policy.loading import load_policy
from rethinker.policy.policy import Policy
from rethinker.types import Query

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "experiments" / "evidence" / "knowing.py"


def first_looks(seed: int = 0, queries: int = 12) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = 4 * queries
    kind = np.repeat(random.choice(["sum", "clock"], queries), 4)
    table = pd.DataFrame(
        {
            "grid": knowing.GRID,
            "variant": "made up",
            "seed": 0,
            "qid": np.repeat([f"q{number}" for number in range(queries)], 4),
            "category": kind,
            "level": 1,
            "answer": random.choice(["1", "2"], rows),
            "first_correct": random.random(rows) < 0.5,
            "second_correct": random.random(rows) < 0.8,
            "tokens": random.integers(8, 12, rows),
            "second_tokens": random.integers(30, 60, rows),
        }
    )
    scores = {name: random.integers(0, 6, rows) / 2 for name in TABLES["knowing"] if name not in table}
    return table.assign(**scores)[list(TABLES["knowing"])]


def drawn_again(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of every bootstrap sample, each written as often as its query was drawn."""
    generator, times = np.random.default_rng(SEED), {}
    for _, cell in rows.groupby(list(CELLS)):
        qids = np.unique(cell["qid"])
        drawn = generator.multinomial(len(qids), np.full(len(qids), 1 / len(qids)), knowing.DRAWS)
        times |= dict(zip(qids, drawn.T, strict=True))
    return [
        rows.loc[rows.index.repeat([times[qid][draw] for qid in rows["qid"]])].reset_index(drop=True)
        for draw in range(knowing.DRAWS)
    ]


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowing, "DRAWS", 40)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("within", [CELLS, (*CELLS, "answer")])
def test_an_interval_is_that_of_queries_drawn_again(within: tuple[str, ...]):
    rows = first_looks()
    found = [knows_when_wrong(each, within, "probe") for each in drawn_again(rows)]
    expected = (knows_when_wrong(rows, within, "probe"), *np.quantile(found, [0.025, 0.975]))
    assert knowing.auc_within(rows, "probe", within) == pytest.approx(expected)


@pytest.mark.usefixtures("few_draws")
def test_second_looks_after_wrong_and_right_ones():
    """By pairs of a wrong and a right first look of one kind: the mean difference of their probabilities."""
    rows = first_looks()

    def by_pairs(each: pd.DataFrame) -> float:
        probability = 1 / (1 + np.exp(-each["looks"]))
        differences = [
            probability[wrong] - probability[right]
            for _, cell in each.groupby(list(CELLS))
            for wrong in cell.index[~cell["first_correct"]]
            for right in cell.index[cell["first_correct"]]
        ]
        return float(np.mean(differences))

    expected = by_pairs(rows), *np.quantile([by_pairs(each) for each in drawn_again(rows)], [0.025, 0.975])
    assert knowing.looks_more_when_wrong(rows) == pytest.approx(expected)


@pytest.mark.usefixtures("few_draws")
def test_the_difference_of_two_rules():
    rows = first_looks()
    of = [
        knowing.rule(each, "probe")["accuracy"] - knowing.rule(each, "by_kind")["accuracy"]
        for each in drawn_again(rows)
    ]
    found = knowing.rule_difference(rows, "probe", "by_kind")
    expected = knowing.rule(rows, "probe")["accuracy"] - knowing.rule(rows, "by_kind")["accuracy"]
    np.testing.assert_allclose(found["value"], expected, atol=1e-12)
    np.testing.assert_allclose(found[["low", "high"]].T, np.quantile(of, [0.025, 0.975], axis=0), atol=1e-12)


def test_a_score_of_other_cells_is_no_evidence():
    """The share of wrong answers of a kind tells kinds apart, and nothing within one."""
    rows = first_looks()
    rows = rows.assign(by_kind=rows["category"].map({"sum": 1.0, "clock": 0.0}))
    assert knowing.auc_within(rows, "by_kind") == (0.5, 0.5, 0.5)
    sees_all = rows.assign(probe=~rows["first_correct"].astype(bool))
    assert knowing.auc_within(sees_all, "probe") == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("score", knowing.RULES)
def test_a_rule_against_one_look_after_the_other(score: str):
    """Without ties: the accuracy after each further second look, in the order of the scores."""
    rows = first_looks(seed=3, queries=10)
    scores = np.random.default_rng(1).permutation(len(rows)).astype(float)
    if score == "oracle":
        rows = rows.assign(first_correct=np.arange(len(rows)) % 2 == 0)
        again = rows.sort_values("first_correct", kind="stable")
    else:
        rows = rows.assign(**{score: scores})
        again = rows.sort_values(score, ascending=False)
    curve = knowing.rule(rows, score).set_index("share")
    for share in (0.0, 0.5, 1.0):
        looked = again.index[: int(share * len(rows))]
        second = rows.index.isin(looked)
        assert curve["accuracy"][share] == pytest.approx(
            np.where(second, rows["second_correct"], rows["first_correct"]).mean()
        )
        assert curve["tokens"][share] == pytest.approx(np.where(second, rows["second_tokens"], rows["tokens"]).mean())


def test_looks_of_one_score_share_alike():
    rows = first_looks().assign(by_kind=1.0)
    curve = knowing.rule(rows, "by_kind").set_index("share")
    for name in ("accuracy", "tokens"):
        assert curve[name][0.3] == pytest.approx(0.7 * curve[name][0.0] + 0.3 * curve[name][1.0])


def test_policies_of_several_seeds_are_told_apart():
    tables = Tables(
        {"knowing": pd.concat([first_looks(), *(first_looks(s).assign(variant="vl-chooser", seed=s) for s in (0, 1))])}
    )
    assert list(knowing.policies(tables)) == ["vl-chooser, seed 0", "vl-chooser, seed 1", "made up"]
    text = knowing.part(tables, "figures")
    assert text.count("\n| made up |") == 1 and "vl-chooser, seed 0: accuracy" in text
    assert 'src="figures/knowing-light.svg"' in text


def test_nothing_measured():
    tables = Tables({"knowing": pd.DataFrame(columns=list(TABLES["knowing"]))})
    assert knowing.part(tables, "figures") == "*Not measured yet.*"
    with pytest.raises(NoData):
        knowing.figure(tables)


def test_what_is_read_off_the_policy(tmp_path: Path):
    """States, the odds of going on and the improbability of an answer against transformers' own forward pass; one call
    keeps the rows of another policy."""
    script = runpy.run_path(str(SCRIPT))
    policy = load_policy(ModelConfig(path=str(ROOT / "data" / "tiny-vlm")), torch.device("cpu"))
    policy.model.eval()
    data = make_data(tmp_path / "data", n_train=72, n_validation=0, n_test=18, seed=1)
    train, test = (
        script["first_looks"](policy, load_queries(data / f"{name}.parquet")[0]) for name in ("train", "test")
    )
    assert len(test) == 72 and set(test["qid"].value_counts()) == {4}
    queries = {query.qid: query for query in load_queries(data / "test.parquet")[0]}
    words = [policy.decode([token]) for token in range(len(policy.tokenizer))]
    for row in test.iloc[::5].to_dict("records"):
        ids = policy.encode(f"The answer is \\boxed{{{row['answer']}")
        layers, logprobs_TV = plain_forward(policy, queries[row["qid"]], ids)
        assert row["improbability"] == pytest.approx(
            -sum(logprobs_TV[at, token].item() for at, token in enumerate(ids)), abs=1e-4
        )
        *lower, _, normed = torch.tensor(row["states"]).view(len(layers) + 1, -1)
        torch.testing.assert_close([*lower, normed], layers, rtol=1e-4, atol=1e-4)
        ends = sum(math.exp(logprobs_TV[-1, at]) for at, word in enumerate(words) if word in ("}", "}."))
        looks = sum(
            math.exp(logprobs_TV[-1, at])
            for at, word in enumerate(words)
            if not word.isdigit() and word not in ("}", "}.")
        )
        assert row["looks"] == pytest.approx(math.log(looks / ends), abs=1e-2)
        assert row["first_correct"] == (row["answer"] == queries[row["qid"]].answer)

    script["add_scores"](train, test)
    for name in ("base", "other"):
        script["keep"](test.assign(grid=knowing.GRID, variant=name, seed=0), tmp_path)
    script["keep"](test.head(9).assign(grid=knowing.GRID, variant="base", seed=0), tmp_path)
    assert load(tmp_path)["knowing"]["variant"].value_counts().to_dict() == {"other": len(test), "base": 9}
    assert not load(tmp_path)["knowing"].isna().any().any()


def test_where_an_answer_ends():
    """Behind the digits of the first box, however the response goes on."""
    script = runpy.run_path(str(SCRIPT))
    policy = load_policy(ModelConfig(path=str(ROOT / "data" / "tiny-vlm")), torch.device("cpu"))
    for text, answer in {
        "The answer is \\boxed{22}.\n\nWait, does it seem right?": "The answer is \\boxed{22",
        "The answer is \\boxed{7Wait, does it": "The answer is \\boxed{7",
        "\\boxed{Wait": "",
        "The answer is": "",
    }.items():
        ids = policy.encode(text)
        assert policy.decode(ids[: script["end_of_answer"](policy, ids)]) == answer


def plain_forward(policy: Policy, query: Query, ids: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Each layer's states behind the last of ``ids``, the last one's normed, and log-probs [T + 1, V] of the tokens of
    ``ids`` and the one behind them."""
    prompt = policy.prompt(query)
    whole = torch.tensor([[*prompt.ids, *ids]])
    with torch.no_grad():
        out = policy.model(input_ids=whole, **image_inputs(policy, query, whole), output_hidden_states=True)
    logits_TV = out.logits[0, len(prompt.ids) - 1 :].index_fill(1, torch.tensor(policy.banned_ids), -1e9)
    return [hidden[0, -1] for hidden in out.hidden_states[1:]], torch.log_softmax(logits_TV, dim=-1)
