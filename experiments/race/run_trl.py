"""A worker: TRL's GRPOTrainer on the same weights, queries, grader and settings, in laps of whole episodes.

Its weights are evaluated by our engine in a policy of its own, which takes them over before each evaluation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import beside  # noqa: F401
import torch
from channel import Driver
from entrants import race_config
from laps import Laps, evaluator
from peer import data_set, plain_settings, reward_function
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rethinker.config import RunConfig
from rethinker.datasets.order import QueryOrder
from rethinker.evaluation.held_out import read_split
from rethinker.grading import grade_many
from rethinker.looks import GradeMany
from rethinker.policy.loading import load_policy
from rethinker.processes import keep_freed_memory
from rethinker.types import Query

EPISODES = 1000  # for which TRL gets queries


class InLaps(TrainerCallback):
    """Counts the episodes of ``updates`` updates each, and waits between laps."""

    def __init__(self, laps: Laps, updates: int) -> None:
        self.laps, self.updates = laps, updates
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything is loaded."""
        control.should_training_stop = not self.laps.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An update is done."""
        step = state.global_step
        if step % self.updates == 0 and not self.laps.after(
            episode=step // self.updates, step=step, tokens=self.tokens
        ):
            control.should_training_stop = True


def settings(config: RunConfig, banned: Sequence[int], micro_batch: int) -> GRPOConfig:
    """TRL's names for ours: an episode is a generation batch, a micro-batch is a device's batch."""
    grpo, optim, rollout = config.grpo, config.optim, config.rollout
    assert grpo.aggregation == "sequence_mean" and grpo.ratio == "token" and grpo.objective == "clip"
    return plain_settings(
        output_dir=str(config.folder),
        seed=config.seed,
        bf16=config.model.autocast,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=optim.train_batch_size // micro_batch,
        steps_per_generation=config.samples_per_episode // micro_batch,
        num_iterations=1,
        num_generations=rollout.group_size,
        max_completion_length=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=0,
        generation_kwargs={"suppress_tokens": list(banned)},
        scale_rewards={"std": "group", "none": "none"}[grpo.advantage_scale],
        epsilon=grpo.clip_low,
        epsilon_high=grpo.clip_high,
        learning_rate=optim.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=optim.warmup_steps,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        max_steps=EPISODES * config.batches(config.samples_per_episode),
        logging_steps=config.batches(config.samples_per_episode),
    )


def in_our_order(queries: Sequence[Query], config: RunConfig) -> list[Query]:
    """The queries of every episode, as our trainer visits them."""
    order = QueryOrder(queries, config.seed)
    return [query for _ in range(EPISODES) for query in order.take(config.queries_per_episode)]


class Race:
    """TRL's trainer of an entrant, and the policy of ours that its weights are evaluated in."""

    def __init__(self, config: RunConfig, grade: GradeMany = grade_many, micro_batch: int | None = None) -> None:
        torch.set_num_threads(config.launch.threads)
        keep_freed_memory()  # as our runs do on a CPU
        self.config, self.grade = config, grade
        self.policy = load_policy(config.model)
        self.model = AutoModelForImageTextToText.from_pretrained(
            config.model.path, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.micro_batch = micro_batch or config.optim.train_batch_size
        self.queries = in_our_order(read_split(config, "train")[0], config)
        self.splits = {"validation": read_split(config, "validation")[0], "test": read_split(config, "test")[0]}

    def train(self, laps: Laps) -> None:
        """Until the driver has had enough. Raises RuntimeError where TRL's prompts are other tokens than ours."""
        callback = InLaps(laps, self.config.batches(self.config.samples_per_episode))
        trainer = GRPOTrainer(
            model=self.model,
            reward_funcs=reward_function(self.grade),
            args=settings(self.config, self.policy.banned_ids, self.micro_batch),
            train_dataset=data_set(self.queries),
            processing_class=AutoProcessor.from_pretrained(self.config.model.path),
            callbacks=[callback],
        )
        generate = trainer._generate
        ours = (self.policy.prompt(query).ids for query in self.queries)

        def counted(prompts: list[Any]) -> Any:
            found = generate(prompts)
            asked = [tuple(ids) for ids in found[0][:: trainer.num_generations]]
            if asked != list(itertools.islice(ours, self.config.queries_per_episode)):
                raise RuntimeError("TRL's prompts of an episode are not the tokens that ours would be")
            callback.tokens += sum(map(len, found[1]))
            return found

        trainer._generate = counted
        trainer.train()


def main() -> None:
    """Answer the driver."""
    driver = Driver()
    job = driver.receive()
    assert job is not None
    config = race_config(**job["config"])
    race = Race(config, micro_batch=job["micro_batch"])
    race.train(Laps(driver, job["slice"], evaluator(config, race.policy, race.splits, race.model)))


if __name__ == "__main__":
    main()
