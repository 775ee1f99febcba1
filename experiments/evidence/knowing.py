"""Could a policy know that its first look is wrong? What it computes where it decides, and second looks forced there.

    .venv/bin/python experiments/evidence/knowing.py base=data/tiny-vlm
    .venv/bin/python experiments/evidence/knowing.py vl-chooser=runs/hf/checkpoints/vl-chooser/model --seed 0

Replaces that policy's rows of ``results/knowing.parquet``; ``make evidence`` makes the page of them. Two minutes on one
core. Four first looks to each of 2,220 fresh queries (another seed's than the shipped splits'): on 1,500 a linear probe
of the hidden states and the rules are fitted, the others are kept. A first look of the tiny VLM is
"The answer is \\boxed{12}."; with the token behind the last digit it ends ("}.") or goes on ("}.\\n\\n", now and then
"Wait"). So the states of the last digit, which choose that token, are probed. Needs what ``make setup-dev`` installs.

Shapes: N first looks, F features (all layers' hidden states at one position).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rethinker.config import ModelConfig
from rethinker.datasets.io import load_queries
from rethinker.datasets.world.visual_math import make_data
from rethinker.grading import grade_many
from rethinker.lab.analysis.choice import CELLS, knows_when_wrong
from rethinker.lab.evidence.knowing import GRID
from rethinker.lab.evidence.tables import RUN, Tables, load, ordered, save
from rethinker.looks import joiner
from rethinker.policy.forward import PolicyForward, process_logits
from rethinker.policy.loading import load_policy
from rethinker.policy.packing import pack
from rethinker.policy.policy import Policy
from rethinker.rethink import TRIGGERS
from rethinker.rollout import TransformersEngine
from rethinker.seeding import stable_seed
from rethinker.types import Query, Request, Sampling

RESULTS = Path(__file__).resolve().parent / "results"
WORLD_SEED = 1  # of the queries; the shipped splits have 0
FIT, MEASURED, SAMPLES = 1500, 720, 4
MAX_NEW_TOKENS, SECOND_TEMPERATURE = 140, 0.9  # as in experiments/tiny.yaml
STOP = "}."  # what ends a first look, before EOS
# The probe's, inverse of its L2 weight; chosen on a quarter of the fitting queries.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", metavar="NAME=FOLDER", help="a checkpoint's model folder, and its name")
    parser.add_argument("--seed", type=int, default=0, help="of the run that trained them; default: 0")
    parser.add_argument("--queries", type=int, nargs=2, default=(FIT, MEASURED), metavar=("FIT", "MEASURED"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        fit, measured = options.queries
        data = make_data(Path(folder) / "fresh", n_train=fit, n_validation=0, n_test=measured, seed=WORLD_SEED)
        splits = [load_queries(data / f"{split}.parquet")[0] for split in ("train", "test")]
        for named in options.policies:
            name, _, place = named.partition("=")
            policy = load_policy(ModelConfig(path=place or name), torch.device("cpu"))
            policy.model.eval()
            train, test = (first_looks(policy, queries) for queries in splits)
            add_scores(train, test)
            keep(test.assign(grid=GRID, variant=name, seed=options.seed), options.out)
            print(f"{name}: {len(test)} first looks, {100 * test['first_correct'].mean():.1f} % right", flush=True)


def first_looks(policy: Policy, queries: Sequence[Query]) -> pd.DataFrame:
    """A row per sampled first look with an answer: ``knowing``'s columns but the fitted ones, and ``states`` [F]."""
    engine = TransformersEngine(policy)
    sampled = engine.generate(
        [Request(query.qid, query, stable_seed("knowing", query.qid), SAMPLES) for query in queries],
        Sampling(1.0, 1.0, 16),
    )
    stop = policy.encode(STOP)
    rows, prefixes = [], []
    for query in queries:
        for number, response in enumerate(sampled[query.qid]):
            end = end_of_answer(policy, response.token_ids)
            if end:
                prefixes.append((query, response.token_ids[:end]))
                about = {"qid": query.qid, "category": query.category, "level": query.level, "number": number}
                about |= {"answer": policy.decode(response.token_ids[:end]).rpartition("{")[2]}
                about |= {"improbability": -sum(response.logprobs[:end]), "tokens": end + len(stop) + 1}  # and EOS
                rows.append(about)
    ended = [(query, (*ids, *stop)) for query, ids in prefixes]
    states_NF, looks_N = at_decision(policy, prefixes)
    table = pd.DataFrame(rows).assign(
        first_correct=_right(policy, ended), states=list(states_NF.numpy()), looks=looks_N.numpy()
    )
    join, kinds = joiner(policy), list(TRIGGERS)
    requests = []
    for at, (query, ids) in enumerate(ended):
        seed = stable_seed("knowing second", query.qid, rows[at]["number"])
        stay, forced = join(ids, kinds[seed % len(kinds)], False)
        requests.append(Request(str(at), query, seed, prefix_ids=(*ids[:stay], *forced)))
    found = engine.generate(requests, Sampling(SECOND_TEMPERATURE, 1.0, MAX_NEW_TOKENS))
    whole = [(each.query, each.prefix_ids + found[each.request_id][0].token_ids) for each in requests]
    return table.assign(second_correct=_right(policy, whole), second_tokens=[len(ids) for _, ids in whole])


def end_of_answer(policy: Policy, ids: Sequence[int]) -> int:
    """How many of ``ids`` stand up to the last digit of the first box; 0 if a number does not follow its brace."""
    text, count = "", 0
    while "{" not in text and count < len(ids):
        text, count = text + policy.decode(ids[count : count + 1]), count + 1
    begin = count
    while count < len(ids) and policy.decode(ids[count : count + 1]).isdigit():
        count += 1
    return count if count > begin and text.endswith("{") else 0


def _right(policy: Policy, responses: Sequence[tuple[Query, tuple[int, ...]]]) -> list[bool]:
    cases = [(policy.decode(ids), query.answer, query.question) for query, ids in responses]
    return [grade.correct for grade in grade_many(cases)]


@torch.no_grad()
def at_decision(policy: Policy, prefixes: Sequence[tuple[Query, tuple[int, ...]]]) -> tuple[Tensor, Tensor]:
    """What the policy computes at the last digit: all layers' states [N, F], and the log-odds [N] (nats) of going on
    against ending there, by the token behind it that is no digit."""
    words = [policy.decode([token]) for token in range(len(policy.tokenizer))]
    digits = [token for token, word in enumerate(words) if word.isdigit()]
    ends = [token for token, word in enumerate(words) if "}" in word and "\n" not in word]
    forward, states, looks = PolicyForward(policy.model), [], []
    language = policy.model.model.language_model
    seen: list[Tensor] = []

    def see(module: torch.nn.Module, arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(see) for module in (*language.layers, language.norm)]
    for start in range(0, len(prefixes), 256):
        part = prefixes[start : start + 256]
        batch = pack(policy, [(query, (*ids, ends[0])) for query, ids in part])  # scores one token more
        seen.clear()
        forward(batch)
        places = torch.stack([batch.place_BT[at, len(ids)] for at, (_, ids) in enumerate(part)])
        layers = [hidden.flatten(0, 1)[batch.predict_U[places]] for hidden in seen]
        logits_NV = process_logits(policy.model.lm_head(layers[-1]), batch.banned, 1.0)
        ending_N = logits_NV[:, ends].logsumexp(-1)
        looks.append(logits_NV.index_fill(1, torch.tensor([*digits, *ends]), -torch.inf).logsumexp(-1) - ending_N)
        states.append(torch.cat(layers, dim=-1))
    for hook in hooks:
        hook.remove()
    return torch.cat(states), torch.cat(looks)


def add_scores(train: pd.DataFrame, test: pd.DataFrame) -> None:
    """The fitted scores, as columns of ``test``, of which nothing decides them."""
    queries = train.drop_duplicates("qid")
    turn = queries.set_index("qid").groupby(list(CELLS)).cumcount() % 4  # every kind and level has a quarter
    validate = train["qid"].map(turn) == 3
    quality = {}
    for penalty in PENALTIES:
        found = _probe(train[~validate], train[validate], penalty)
        quality[penalty] = knows_when_wrong(train[validate].assign(probe=found), CELLS, "probe")
    best = max(quality, key=lambda penalty: quality[penalty])
    print("probe, AUC by penalty:", {penalty: round(value, 3) for penalty, value in quality.items()}, flush=True)
    sure = _sure(train, test)
    for name, by in (("by_kind", ["category"]), ("by_level", list(CELLS))):
        gains = (train["second_correct"].astype(float) - train["first_correct"]).groupby([train[key] for key in by])
        test[name] = test.set_index(by).index.map(gains.mean()).to_numpy(float)
    right_after = train.groupby(list(CELLS))["second_correct"].mean()
    test["by_both"] = test.set_index(list(CELLS)).index.map(right_after).to_numpy(float) - sure
    test["probe"] = _probe(train, test, best)


def _probe(train: pd.DataFrame, test: pd.DataFrame, penalty: float) -> np.ndarray:
    """Log-odds of a wrong first look by its states, with an intercept per kind and level that is left out of them."""
    scaler = StandardScaler().fit(np.stack(train["states"].to_list()))
    features = scaler.transform(np.stack(train["states"].to_list()))
    fitted = LogisticRegression(C=penalty, max_iter=1000).fit(
        np.hstack([features, 3 * _cells(train, train)]), train["first_correct"] == 0
    )
    weights = fitted.coef_[0][: features.shape[1]]
    return np.asarray(scaler.transform(np.stack(test["states"].to_list())) @ weights)


def _sure(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """P(right) of the first looks of ``test`` by kind, level and improbability: a logistic regression."""

    def features(table: pd.DataFrame) -> np.ndarray:
        improbable = table["improbability"].to_numpy(float)[:, None]
        return np.hstack([2 * _cells(train, table), 4 * np.exp(-improbable), improbable])

    fitted = LogisticRegression(max_iter=1000).fit(features(train), train["first_correct"])
    return np.asarray(fitted.predict_proba(features(test))[:, 1])


def _cells(known: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """One column per kind and level of ``known``: 1 where a row is of it."""
    cells = sorted(set(zip(known["category"], known["level"], strict=True)))
    rows = list(zip(table["category"], table["level"], strict=True))
    return np.array([[row == cell for cell in cells] for row in rows], dtype=float)


def keep(rows: pd.DataFrame, folder: Path) -> None:
    """The table ``knowing`` with these rows in the place of that policy's."""
    before = load(folder)["knowing"]
    same = pd.concat([before[key] == rows[key].iloc[0] for key in RUN], axis=1).all(axis=1)
    numbers = rows.select_dtypes("floating").columns
    rows = rows.assign(**{name: rows[name].round(4).astype("float32") for name in numbers})
    save(Tables({"knowing": ordered("knowing", [before[~same], rows])}), folder)


if __name__ == "__main__":
    main()
