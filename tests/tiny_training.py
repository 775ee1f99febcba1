"""A trainer on the random tiny model with a scripted engine, put together as rethinker.run does it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from builders import make_sample

from rethinker.config import ModelConfig, RunConfig, load_config
from rethinker.datasets.order import QueryOrder
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy
from rethinker.policy.policy import Policy
from rethinker.replay import make_selector
from rethinker.rollout.scripted import ScriptedEngine
from rethinker.rundir.metrics import EpisodeRecord
from rethinker.rundir.tracking import Tracker
from rethinker.trainer import Progress, Trainer
from rethinker.types import Query, Request, Sample
from rethinker.update import PolicyUpdate

SMALL = (
    "rollout.group_size=4",
    "rollout.max_new_tokens=96",
    "rollout.canary=0",
    "optim.train_batch_size=8",
    "optim.lr=1e-3",
    "rethink.min_second_look_tokens=8",
)


@contextmanager
def fresh_process() -> Iterator[None]:
    """A process as it was before a run, which sets accelerate, torch's threads and signal handlers; also afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    AcceleratorState._reset_state(True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def small_config(folder: Path, *overrides: str) -> RunConfig:
    """4 queries of 4 responses per episode, two batches of 8."""
    return load_config(None, [f"runs_dir={folder}", "queries_per_episode=4", *SMALL, *overrides])


def tiny_policy(folder: Path) -> Policy:
    return load_policy(ModelConfig(path=str(folder)))


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in policy.model.named_parameters()}


def restore(policy: Policy, saved: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in policy.model.named_parameters():
            value.copy_(saved[name])
            value.grad = None
            value.requires_grad_(True)


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


class Recorder:
    """Stands before the real update and remembers the batches it was given."""

    def __init__(self, update: PolicyUpdate) -> None:
        self.update = update
        self.batches: list[list[Sample]] = []

    def __call__(self, batch: Sequence[Sample], **options: Any) -> dict[str, float | None]:
        self.batches.append(list(batch))
        return self.update(batch, **options)

    @property
    def scored(self) -> dict[str, tuple[float, ...]]:
        return self.update.scored


class Records(Tracker):
    """A tracker whose lines and episodes can be read back."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def log(self, record: str, stage: str, episode: int, step: int, metrics: Any) -> None:
        super().log(record, stage, episode, step, metrics)
        self.lines.append((record, dict(metrics)))

    def of(self, record: str) -> list[dict[str, Any]]:
        return [metrics for kind, metrics in self.lines if kind == record]


class Run:
    """A trainer and what it did."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        queries: Sequence[Query],
        respond: Callable[[Request, int], str],
        engine_class: type[ScriptedEngine] = ScriptedEngine,
    ) -> None:
        self.config, self.policy = config, policy
        self.engine = engine_class(respond, policy.tokenizer)
        forward, accelerator = PolicyForward(policy.model, policy.encoder), Accelerator(cpu=True)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=config.optim.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        mode: Any = "filter" if config.replay.mode == "dynamic_sampling" else config.replay.mode
        replay = config.replay
        self.selector = make_selector(mode, alpha=replay.alpha, lifetime=replay.lifetime, capacity=replay.capacity)
        update: Any = Recorder(PolicyUpdate(config, policy, forward, optimizer, scheduler, accelerator))
        self.recorder = update
        self.records = Records(config)
        self.episodes: list[EpisodeRecord] = []
        self.trainer = Trainer(
            config,
            "stage",
            policy=policy,
            forward=forward,
            engine=self.engine,
            order=QueryOrder(queries, config.seed),
            selector=self.selector,
            update=update,
            tracker=self.records,
            accelerator=accelerator,
            progress=Progress(),
        )
        report = self.trainer.report

        def remember(record: EpisodeRecord, *rest: Any) -> dict[str, Any]:
            self.episodes.append(record)
            return report(record, *rest)

        self.trainer.report = remember  # type: ignore[method-assign]

    def episode(self) -> dict[str, Any]:
        return self.trainer.episode()

    @property
    def batches(self) -> list[list[Sample]]:
        return self.recorder.batches


def logprobs_now(policy: Policy, sample: Sample) -> list[float]:
    """The sample's log-probs by the weights as they are."""
    with torch.no_grad():
        found, _, _ = token_logprobs(policy, PolicyForward(policy.model), [(sample.query, sample.response.token_ids)])
    return found[0].tolist()


def random_samples(policy: Policy, queries: Sequence[Query], count: int, seed: int = 0) -> list[Sample]:
    """Samples of random ordinary tokens and random advantages, a little off the policy and the engine off both."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([i for i in range(len(policy.tokenizer)) if i not in {*policy.banned_ids, policy.eos_id}])
    samples = []
    for index in range(count):
        length = int(torch.randint(2, 9, (), generator=generator))
        ids = allowed[torch.randint(len(allowed), (length,), generator=generator)].tolist()
        sample = make_sample(
            f"1/q/{index}",
            tokens=(*ids, policy.eos_id),
            query=queries[index % len(queries)],
            advantage=float(torch.randn((), generator=generator)),
            prompt_tokens=len(policy.prompt(queries[index % len(queries)]).ids),
        )
        now = torch.tensor(logprobs_now(policy, sample))
        behavior = now + 0.3 * torch.randn(len(now), generator=generator)
        rollout = behavior + 0.3 * torch.randn(len(now), generator=generator)
        samples.append(
            replace(
                sample,
                behavior_logprobs=tuple(behavior.tolist()),
                response=replace(sample.response, logprobs=tuple(rollout.tolist())),
            )
        )
    return samples


def teach_guessing(tokenizer_of: Path, folder: Path, queries: Sequence[Query], steps: int = 40) -> Path:
    """Write a tiny model that answers 1 or 2 at random, and after a trigger again: groups of it have an advantage."""
    from rethinker.policy.loading import load_processor, make_policy
    from rethinker.tiny.model import save_policy, tiny_model

    torch.manual_seed(0)
    processor = load_processor(ModelConfig(path=str(tokenizer_of)))
    model = tiny_model(processor.tokenizer, seed=0)
    teach(make_policy(model, processor), queries, steps)
    save_policy(folder, model, processor)
    return folder


def teach(policy: Policy, queries: Sequence[Query], steps: int) -> None:
    """Make a policy a guesser; see ``teach_guessing``."""
    from rethinker.policy.seam import natural_seam
    from rethinker.rethink import TRIGGERS

    items, taught = [], []
    for index, query in enumerate(queries):
        for answer in "12":
            first, trigger = policy.encode(f"\\boxed{{{answer}}}"), list(TRIGGERS.values())[(index + int(answer)) % 3]
            again = policy.encode(f" \\boxed{{{'12'[index % 2]}}}")
            kept, forced = natural_seam(first, trigger, encode=policy.encode, decode=policy.decode)
            items += [(query, [*first, policy.eos_id]), (query, [*first[:kept], *forced, *again, policy.eos_id])]
            taught += [
                [True] * (len(first) + 1),
                [True] * kept + [False] * len(forced) + [True] * (len(again) + 1),
            ]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3)
    forward = PolicyForward(policy.model)
    for _ in range(steps):
        logprobs_BT, mask_BT, _ = token_logprobs(policy, forward, items)
        loss_mask_BT = torch.zeros_like(mask_BT)
        for row, flags in zip(loss_mask_BT, taught, strict=True):
            row[: len(flags)] = torch.tensor(flags)
        loss = -logprobs_BT[loss_mask_BT].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def write_world(folder: Path, images: Sequence[str]) -> Path:
    """Twelve training queries (every other one without an image), four each for validation and test; answers 1 or 2."""
    from rethinker.datasets.io import write_parquet

    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        rows = [
            {
                "question": f"<image>{split} {index}?" if index % 2 else f"{split} {index}?",
                "answer": f"\\boxed{{{1 + index // 2 % 2}}}",
                "category": "images" if index % 2 else "text",
                "source": "test",
                "qid": f"{split}-{index}",
                "image": [images[index % len(images)]] if index % 2 else [],
                "level": 1,
            }
            for index in range(count)
        ]
        write_parquet(folder / f"{split}.parquet", rows)
    return folder
