"""What a base brings to Forced Rethinking, counted by hand on an engine that says what it is told."""

import shutil

import pytest

from rethinker import cli
from rethinker.config import ModelConfig
from rethinker.grading import grade_many
from rethinker.policy.loading import load_policy
from rethinker.tiny import measures as base
from rethinker.tiny import pretrain
from rethinker.tiny.curriculum import PretrainSettings
from rethinker.tiny.measures import measure_base, model_card
from rethinker.types import Query, Response


class Told:
    """First passes by (qid, number of the sample), second looks by qid; greedy first passes are those of number 0. "~":
    a response that is cut at the token limit."""

    def __init__(self, policy, first, second) -> None:
        self.policy, self.first, self.second = policy, first, second

    def generate(self, requests, sampling):
        return {request.request_id: tuple(self._responses(request)) for request in requests}

    def _responses(self, request):
        for index in range(request.n):
            qid = request.query.qid
            answer = self.second[qid] if request.prefix_ids else self.first[qid][index]
            ids = tuple(self.policy.tokenizer(f"The answer is \\boxed{{{answer}}}.")["input_ids"])
            ids = ids[:2] if answer == "~" else (*ids, self.policy.eos_id)
            yield Response(ids, (0.0,) * len(ids), answer != "~", self.policy.decode(ids))


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return load_policy(ModelConfig(path=str(tiny_folder)))


def test_every_share_by_hand(policy) -> None:
    queries = [
        Query("a", "?", "1", category="sum", level=1),
        Query("b", "?", "2", category="sum", level=2),
    ]
    # a: right, wrong, wrong, wrong; b: wrong four times. Second looks: a always right, b always wrong.
    engine = Told(policy, {"a": "1999", "b": "9999"}, {"a": "1", "b": "9"})
    measures = measure_base(engine, policy, queries, grade=grade_many, samples=4)
    assert measures.first_sampled == 1 / 8
    assert measures.first_greedy == 1 / 2
    assert measures.forced_sampled == measures.forced_greedy == 1 / 2
    assert measures.wrong_to_right == 3 / 7
    # The next sample of a's four is wrong, wrong, wrong, right: one of the seven wrong ones is followed by a right one.
    assert measures.wrong_to_right_resampled == pytest.approx(1 / 7)
    assert measures.right_to_wrong == 0
    assert measures.right_to_wrong_resampled == 1
    assert (measures.reflection, measures.finished) == (0, 1)
    assert measures.table.values.tolist() == [["sum", 1, 1, 0.25, 1.0, 1.0], ["sum", 2, 1, 0.0, 0.0, 0.0]]
    about = {"shape": "three parameters", "command": "make it", "made": "at once", "data": "two queries"}
    card = model_card(measures, PretrainSettings(seed=3), **about)
    assert "Up to step 3,800 the decision" in card and "near -10 where" in " ".join(card.split())
    assert "architecture with three parameters, its" in card and "    make it\n" in card
    assert "| wrong → right, forced (independent second sample) | 0.429 (0.143) |" in card
    assert "| sum | 0.25 → 1.00 | 0.00 → 0.00 |" in card


def test_a_second_look_and_a_second_sample_are_compared_on_the_same_responses(policy) -> None:
    """Right, wrong, and two that are cut, which nothing continues: one wrong response got a second look, a right one.
    The sample after it was cut."""
    engine = Told(policy, {"a": "19~~"}, {"a": "1"})
    measures = measure_base(engine, policy, [Query("a", "?", "1", category="sum", level=1)], samples=4)
    assert (measures.wrong_to_right, measures.wrong_to_right_resampled) == (1, 0)  # over all wrong ones: 1/3 and 1/3
    assert (measures.right_to_wrong, measures.right_to_wrong_resampled) == (0, 1)
    assert measures.first_sampled == 1 / 4 and measures.finished == 1 / 2


def test_one_sample_has_no_second(policy) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        measure_base(Told(policy, {}, {}), policy, [], samples=1)


def test_the_command_writes_the_card_too(tiny_folder, tmp_path, monkeypatch, capsys) -> None:
    """Everything but the training itself is real; 18 queries are one of each kind and level."""
    made = []

    def copy(out, settings, resume) -> float:
        made.append(settings)
        assert not resume
        shutil.copytree(tiny_folder, out)
        (out / pretrain.STATE).touch()
        return 100.0

    monkeypatch.setattr(pretrain, "pretrain_tiny", copy)
    monkeypatch.setattr(base, "TEST_QUERIES", 18)
    out = tmp_path / "made"
    assert cli.main(["pretrain-tiny", "--out", str(out), "--size", "4m", "--steps", "7", "--threads", "1"]) == 0
    assert [(settings.size, settings.steps) for settings in made] == [("4m", 7)]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"\n    rethinker pretrain-tiny --out {out} --size 4m --steps 7 --seed 0 --threads 1\n" in card
    assert "Seed 0, 7 steps in 2 minutes on 1 CPU thread." in card
    assert "Measured on the 18 test queries" in card
    assert "(1 queries per cell)" in card
    assert "The decision to take a second look carries none." in " ".join(card.split()) and "3,800" not in card
    assert not (out / pretrain.STATE).exists()
    assert "accuracy of the first pass 0.000" in capsys.readouterr().out
    assert cli.main(["pretrain-tiny", "--out", str(out), "--resume"]) == 0 and len(made) == 1
    assert "is finished; without --resume it is made again" in capsys.readouterr().out
