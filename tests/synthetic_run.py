"""A made-up run, written file by file as rethinker/rundir/glossary.py says: two stages, every kind of record.

Its numbers follow a simple story (a rising skill, reflection in stage 2), drawn from a seed; nothing is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from rethinker.evaluation.evaluate import validate
from rethinker.evaluation.result import COLUMNS, Evaluation
from rethinker.rethink import TRIGGERS
from rethinker.rundir.atomic import append_json_line, atomic_write_text
from rethinker.rundir.glossary import EPISODE, ROLLOUT_COLUMNS, STEP
from rethinker.types import Grade, Query, Response, Sampling

KINDS = ("angle", "bars", "clock", "count", "sum", "table")
STAGES = ("reasoner", "rethinker")
GROUP = 8
EDGES = -3.0625 + 0.125 * np.arange(50)


def write_run(
    folder: Path, *, stages: tuple[int, ...] = (6, 8), queries: int = 24, held_out: int = 48, seed: int = 0
) -> Path:
    """A run with ``stages[i]`` episodes in stage i; ends before the last evaluation if it has one stage only."""
    world = World(folder, np.random.default_rng(seed))
    world.write(stages, queries, held_out)
    return folder


class World:
    """Draws queries, responses and records, and writes them."""

    def __init__(self, folder: Path, generator: np.random.Generator) -> None:
        self.folder, self.random = folder, generator
        self.tokens = self.step = 0
        self.seconds = 0.0

    def write(self, stages: tuple[int, ...], queries: int, held_out: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        train = [self.query(f"train-{number:04d}") for number in range(queries)]
        test = [self.query(f"test-{number:04d}") for number in range(held_out)]
        settings = "name: synthetic\nmodel:\n  path: data/tiny-vlm\nreplay:\n  mode: ssr\n"
        atomic_write_text(self.folder / "config.yaml", settings)
        provenance = {"git": {"commit": "0123abc", "dirty": False}, "seed": 0, "versions": {"torch": "2.13.0"}}
        atomic_write_text(self.folder / "provenance.json", json.dumps(provenance))
        self.evaluate(test, "start", 0.0, 0.0)
        self.validation(test, 0, STAGES[0], 0.0, 0.0)
        episode = 0
        for number, episodes in enumerate(stages):
            stage = STAGES[number]
            for done in range(1, episodes + 1):
                episode += 1
                skill = number * 0.25 + 0.25 * done / episodes
                reflection = number * min(1.0, 1.3 * done / episodes)
                self.episode(train, episode, stage, skill, reflection)
                if done % 2 == 0 or done == episodes:
                    self.validation(test, episode, stage, skill, reflection)
            self.evaluate(test, stage, 0.25 * (number + 1), 0.96 * number)

    def query(self, qid: str) -> Query:
        kind = KINDS[int(self.random.integers(len(KINDS)))]
        first, second = (int(value) for value in self.random.integers(2, 30, size=2))
        path = self.folder.parent / "images" / f"{qid}.png"
        path.parent.mkdir(exist_ok=True)
        picture = Image.new("RGB", (64, 64), "white")
        draw = ImageDraw.Draw(picture)
        draw.rectangle((8, 60 - first, 24, 60), fill="#0072b2")
        draw.rectangle((36, 60 - second, 52, 60), fill="#d55e00")
        picture.save(path)
        question = "<image>What is the sum of the two bars? 3 < 5 & so on."
        return Query(qid, question, str(first + second), (str(path),), kind, level=1 + (first % 3))

    def answer(self, query: Query, skill: float) -> str:
        rate = np.clip(0.15 + skill + 0.1 * (3 - query.level) + (hash_share(query.qid) - 0.5) * 1.4, 0.0, 1.0)
        right = self.random.random() < rate
        return query.answer if right else str(int(query.answer) + int(self.random.integers(1, 9)))

    def respond(self, query: Query, skill: float, reflection: float) -> tuple[str, str | None]:
        """y1 and, with probability ``reflection``, its own second look."""
        first = f"The answer is \\boxed{{{self.answer(query, skill)}}}."
        if self.random.random() >= reflection:
            return first, None
        return first, self.second_look(query, skill, "self-verification")

    def second_look(self, query: Query, skill: float, trigger: str) -> str:
        answer = self.answer(query, skill + 0.35)
        return f"{TRIGGERS[trigger]}\nLeft bar, right bar: together {answer}. The answer is \\boxed{{{answer}}}."

    def episode(self, queries: list[Query], episode: int, stage: str, skill: float, reflection: float) -> None:
        rows: list[dict[str, Any]] = []
        for query in queries:
            group = [self.first_row(query, episode, stage, index, skill, reflection) for index in range(GROUP)]
            forced = [self.forced_row(row, query, skill) for row in group if self.is_forced(row, stage)]
            rewards = np.array([row["correct"] for row in group], dtype=float)
            kept = [row for row in forced if row["correct"]][:2]
            for row in kept:
                row["kept"] = True
                rewards[int(row["sample_id"].rpartition("/")[2])] = 1.0
            spread = rewards.std()
            advantages = (rewards - rewards.mean()) / (spread + 1e-6) if spread else np.zeros(GROUP)
            gone = {row["sample_id"] for row in kept}
            for row, reward, advantage in zip(group, rewards, advantages, strict=True):
                target = (
                    next(item for item in kept if item["sample_id"] == row["sample_id"])
                    if row["sample_id"] in gone
                    else row
                )
                target |= {"reward": reward, "advantage": float(advantage), "replays": int(abs(advantage) > 1)}
            rows += group + forced
        table = pd.DataFrame(rows, columns=list(ROLLOUT_COLUMNS))
        path = self.folder / "rollouts" / f"episode-{episode:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path, index=False)
        self.records(table, episode, stage, skill)

    def is_forced(self, row: dict[str, Any], stage: str) -> bool:
        return stage == STAGES[1] and not row["reflects"] and row["finished"] and self.random.random() < 0.5

    def first_row(self, query: Query, episode: int, stage: str, index: int, skill: float, reflection: float) -> dict:
        first, second = self.respond(query, skill, reflection)
        text = first + (second or "")
        extracted = text.rpartition("{")[2].split("}")[0]
        empty = dict.fromkeys(("reward", "advantage", "trigger", "first_text", "first_tokens", "trigger_tokens"))
        return empty | {
            "episode": episode,
            "stage": stage,
            "sample_id": f"{episode}/{query.qid}/{index}",
            "qid": query.qid,
            "category": query.category,
            "level": query.level,
            "question": query.question,
            "gold": query.answer,
            "images": list(query.images),
            "pass": "first",
            "text": text,
            "tokens": len(text) // 3,
            "finished": bool(self.random.random() > 0.02),
            "correct": extracted == query.answer,
            "extracted": extracted,
            "grade_reason": "exact" if extracted == query.answer else "different",
            "reflects": second is not None,
            "replays": 0,
            "first_correct": None,
            "kept": False,
        }

    def forced_row(self, row: dict, query: Query, skill: float) -> dict:
        trigger = sorted(TRIGGERS)[int(self.random.integers(3))]
        text = row["text"] + self.second_look(query, skill, trigger)
        extracted = text.rpartition("{")[2].split("}")[0]
        return row | {
            "pass": "forced",
            "text": text,
            "tokens": len(text) // 3,
            "correct": extracted == query.answer,
            "extracted": extracted,
            "trigger": trigger,
            "first_text": row["text"],
            "first_tokens": row["tokens"] - 1,
            "trigger_tokens": 5,
            "first_correct": row["correct"],
        }

    def records(self, table: pd.DataFrame, episode: int, stage: str, skill: float) -> None:
        first, forced = table[table["pass"] == "first"], table[table["pass"] == "forced"]
        means = first.groupby("qid")["correct"].mean()
        advantages = table["advantage"].dropna().to_numpy(dtype=float)
        trained = np.concatenate([advantages[advantages != 0]] * 2)[: len(advantages)]
        reflects = first["reflects"].astype(bool)
        pairs = list(zip(forced["first_correct"].astype(bool), forced["correct"].astype(bool), strict=True))

        def share(before: bool, after: bool) -> float | None:
            return sum(pair == (before, after) for pair in pairs) / len(pairs) if pairs else None

        self.tokens += int(table["tokens"].sum())
        self.seconds += 11.5
        known = {
            "queries/effective": float(((means > 0) & (means < 1)).mean()),
            "queries/all_correct": float((means == 1).mean()),
            "queries/all_incorrect": float((means == 0).mean()),
            "accuracy/first": float(first["correct"].mean()),
            "reward/mean": float(table["reward"].mean()),
            "reflection/share": float(reflects.mean()),
            "reflection/accuracy_with": float(first.loc[reflects, "correct"].mean()) if reflects.any() else None,
            "reflection/accuracy_without": float(first.loc[~reflects, "correct"].mean()) if (~reflects).any() else None,
            "rethink/eligible": float((~reflects).mean()) if stage == STAGES[1] else 0.0,
            "rethink/forced": len(forced) / len(first),
            "rethink/kept": float(table["kept"].sum()) / len(first),
            "rethink/trained": 1.0 if table["kept"].any() else None,
            "rethink/wrong_to_right": share(False, True),
            "rethink/right_to_wrong": share(True, False),
            "rethink/right_to_right": share(True, True),
            "rethink/wrong_to_wrong": share(False, False),
            "advantages/before": histogram(advantages),
            "advantages/after": histogram(trained),
            "replay/effective_before": float((advantages != 0).mean()),
            "replay/effective_after": 1.0,
            "replay/share": float((advantages == 0).mean()),
            "replay/batch_fill": 1.0,
            "replay/unfilled": 0,
            "replay/age_mean": None,
            "replay/age_max": None,
            "replay/skipped_steps": int(episode == 3),
            "rollout/responses": len(table),
            "rollout/tokens": int(table["tokens"].sum()),
            "rollout/rounds": 1,
            "rollout/empty": 0,
            "rollout/truncated": int((~first["finished"].astype(bool)).sum()),
            "grader/no_answer": 1,
            "grader/failures": int(episode == 2),
            "tokens/generated": self.tokens,
            "canary/gap": None,
            "canary/usual": None,
        }
        for _ in range(4):
            self.step += 1
            line = {name: float(self.random.random()) for name in STEP} | {"loss/kl": None}
            self.line("step", episode, stage, line)
        rest = {name: float(self.random.integers(1, 9)) for name in EPISODE.keys() - known.keys()}
        self.line("episode", episode, stage, known | rest)

    def line(self, record: str, episode: int, stage: str, metrics: dict[str, Any]) -> None:
        place = {"record": record, "episode": episode, "step": self.step, "stage": stage, "seconds": self.seconds}
        append_json_line(self.folder / "metrics.jsonl", place | metrics)

    def validation(self, queries: list[Query], episode: int, stage: str, skill: float, reflection: float) -> None:
        world = self

        class Engine:
            def generate(self, requests, sampling):
                pairs = {request.request_id: world.respond(request.query, skill, reflection) for request in requests}
                texts = {key: first + (second or "") for key, (first, second) in pairs.items()}
                return {key: (Response((1,) * 20 + (0,), (0.0,) * 21, True, text),) for key, text in texts.items()}

        def grade_many(items):
            return [Grade(f"{{{gold}}}." in text[-12:], None, "exact") for text, gold, _ in items]

        policy: Any = SimpleNamespace(prompt=lambda query: SimpleNamespace(ids=()))
        engine: Any = Engine()
        result = validate(engine, policy, queries, sampling=Sampling(), seed=0, grade=grade_many)
        self.line("validation", episode, stage, result.validation_metrics())

    def evaluate(self, queries: list[Query], label: str, skill: float, reflection: float) -> None:
        rows = []
        for query in queries:
            for greedy, index in [(True, 0)] + [(False, index) for index in range(4)]:
                row = self.first_row(query, 0, label, index, skill, reflection)
                forced = self.forced_row(row, query, skill)
                shared = {"greedy": greedy, "index": index, "first_text": row["text"], "first_correct": row["correct"]}
                rows.append(row | shared | {"mode": "plain", "trigger": None})
                rows.append(forced | shared | {"mode": "forced"})
                rows.append((row if row["correct"] else forced) | shared | {"mode": "bound"})
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        settings = {"seed": 0, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 128}
        Evaluation(table, ("plain", "forced", "bound"), 4, settings).save(self.folder, label)


def histogram(values: np.ndarray) -> dict[str, list[float]]:
    counts, edges = np.histogram(np.clip(values, EDGES[0], EDGES[-1]), EDGES)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def hash_share(text: str) -> float:
    """A number in [0, 1) that belongs to a text (``hash`` differs from process to process)."""
    return (sum(ord(letter) * 31**position for position, letter in enumerate(text)) % 997) / 997
