"""A whole run in one process group: stages, validation, checkpoints, final evaluation, stopping and resuming."""

from __future__ import annotations

import argparse
import json
import signal
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from rich.markup import escape
from transformers.utils.logging import disable_progress_bar

from rethinker.build import (
    find_checkpoint,
    load_reference,
    load_start,
    make_forward,
    make_optimizer,
    make_stage_selector,
    start_process,
)
from rethinker.config import EvaluationConfig, RunConfig, StageConfig, check_trainable, load_config, to_yaml
from rethinker.config.no_effect import without_effect
from rethinker.datasets.order import QueryOrder
from rethinker.evaluation.evaluate import validate
from rethinker.evaluation.held_out import (
    most_images,
    sampling,
    test_policy,
)
from rethinker.evaluation.result import Evaluation
from rethinker.policy.lengths import PromptRoom
from rethinker.policy.policy import Policy
from rethinker.policy.sharding import is_sharded
from rethinker.policy.weights import trained_parameters
from rethinker.queries import RunQueries
from rethinker.rollout import TransformersEngine, checked_gap, gap_bound, make_engine
from rethinker.rundir import checkpoint, pointers
from rethinker.rundir.atomic import atomic_write_text
from rethinker.rundir.diagnosis import DRIFT, describe_drift
from rethinker.rundir.folder import check_writer, exclusive_writer
from rethinker.rundir.paths import BEST, LAST, RunDir
from rethinker.rundir.phases import Phases
from rethinker.rundir.provenance import check_data, check_engine, check_same_data, data_facts, record_start
from rethinker.rundir.together import on_main
from rethinker.rundir.tracking import MakeSink, Tracker
from rethinker.seeding import stable_seed
from rethinker.trainer import Progress, Trainer
from rethinker.types import Query
from rethinker.update import PolicyUpdate


class TrainingRun:
    """Everything that a run needs, built once; ``run()`` executes the stages."""

    def __init__(
        self, config: RunConfig, *, resume: bool = False, lock: int | None = None, make_sink: MakeSink | None = None
    ) -> None:
        """``lock``: what ``exclusive_writer`` yields. ``make_sink``: of ``Tracker``."""
        check_trainable(config)
        self.config = config
        self.lock = lock
        self.folder = RunDir(config.folder)
        self.accelerator = start_process(config)
        self.phases = Phases(self.folder.phases, self.accelerator.process_index, self.accelerator.num_processes)
        saved, damaged = find_checkpoint(config, self.accelerator, resume)
        state = checkpoint.load_trainer_state(saved) if saved else {}
        self.progress = Progress(**state.get("progress", {}))
        self.best: float | None = state.get("best")
        self.resume_from = saved
        self.tracker = Tracker(
            config,
            enabled=self.accelerator.is_main_process,
            seconds_before=state.get("seconds", 0.0),
            make_sink=make_sink,
        )
        self.phases.enter("start")
        if damaged:
            self.tracker.say(f"[bold]warning[/]: {escape(damaged)}")
        self.policy = self.load_policy(saved)
        self.room = PromptRoom(self.policy, config.rollout.max_new_tokens)
        queries = RunQueries(config, self.room, self.accelerator, self.tracker.say, resumed=saved is not None)
        self.train_queries, self.drawn = queries.train, queries.drawn
        self.validation_queries, self.test_queries = queries.validation, queries.test
        splits = {"train": queries.train, "validation": queries.validation, "test": queries.test}
        self.data = data_facts(config, **splits)
        check_same_data(self.data, **splits)
        if saved:
            check_data(self.folder, self.data)
        if self.accelerator.is_main_process:
            atomic_write_text(self.folder.config, to_yaml(config))
        self.tracker.truncate_after(self.progress.episode if saved else -1, self.progress.step)
        if self.best is not None and on_main(lambda: pointers.find(self.folder.checkpoints, BEST) is None):
            self.tracker.say(
                f"[bold]warning[/]: the checkpoint of the best validation accuracy, {self.best:.3f}, is missing: the "
                "best one from here on is kept"
            )
            self.best = None
        self.order = QueryOrder(self.train_queries, config.seed, self.drawn)
        if config.queries_per_episode > len(self.train_queries):
            raise ValueError(
                f"queries_per_episode={config.queries_per_episode}, but {config.data.train} has "
                f"{len(self.train_queries)} usable queries; lower it or provide more data"
            )
        if "order" in state:
            self.order.load_state_dict(state["order"])
        self.forward = make_forward(config, self.policy, self.accelerator)
        # Now, while shards are shards: an engine can have them whole later.
        self.trained = trained_parameters(self.policy.model)
        self.reference = load_reference(config, self.policy, self.forward, self.accelerator)
        every = [*self.train_queries, *self.validation_queries, *self.test_queries]
        self.engine = make_engine(
            config, self.policy, max_images=most_images(every), max_prompt=self.room.longest, forward=self.forward
        )
        engine = type(self.engine).__name__
        if saved:
            check_engine(self.folder, engine)
        self.engine.sync_weights(self.policy.model)
        self.usual_gap: float | None = self.check_engine(state.get("usual_gap"))
        self.stop_requested = False
        unused = without_effect(config, vllm=not isinstance(self.engine, TransformersEngine))
        if config.model.sharding != "none" and not is_sharded(self.forward):
            unused.append(f"model.sharding={config.model.sharding} (needs several processes)")
        if unused:
            self.tracker.say(
                f"[bold]warning[/]: settings that change neither training nor evaluation: {escape('; '.join(unused))}"
            )
        if self.accelerator.is_main_process:
            processes = self.accelerator.num_processes
            record_start(config, engine=engine, processes=processes, data=self.data, anew=not saved)

    def check_engine(self, usual: float | None) -> float | None:
        """The gap between engine and trainer that is usual in this run, in nats: ``usual`` when it is resumed, else
        that of the first sync; None without a canary. Raises RuntimeError where they are far apart.
        """
        if self.config.rollout.canary == 0:
            return None
        first = self.train_queries[:64]
        usable = self.drawn(first) if self.drawn else [True] * len(first)
        queries = sorted(compress(first, usable), key=lambda query: not query.images)
        gap = checked_gap(
            self.engine,
            self.policy,
            self.accelerator.unwrap_model(self.forward),
            list(dict.fromkeys([*queries[:2], *queries[-2:]])),  # with images, and without
            sampling(self.config),
            self.config,
            seed=stable_seed(self.config.seed, "canary", "start", self.progress.episode),
            when="at the start",
        )
        self.engine.sync_weights(self.policy.model)  # forgets the probe: the run starts with empty caches
        largest = max(gather_object([gap or 0.0]))
        if usual is None:
            # In bfloat16 the gaps of a few probes scatter by more than DRIFT.
            return max(largest, gap_bound(self.config, self.policy) / 10)
        if largest > DRIFT * usual:
            self.tracker.say(f"[bold]warning[/]: {describe_drift(largest, usual)}")
        return usual

    def load_policy(self, saved: Path | None) -> Policy:
        """The policy at the start of the run, or from the checkpoint."""
        return load_start(self.config, self.accelerator, saved)

    def run(self) -> str:
        """Run the remaining stages; returns "finished" or "stopped"."""
        signal.signal(signal.SIGTERM, self.request_stop)  # what a scheduler sends before it kills
        self.write_status("running")
        state = "finished"
        if not self.resume_from:
            self.test("start")
            self.validate("start")
            self.best = None  # the start has no checkpoint: the best one is the best of those that have
        for index in range(self.progress.stage, len(self.config.stages)):
            if not self.run_stage(index):
                state = "stopped"
                break
        self.write_status(state)
        if self.accelerator.is_main_process:
            self.folder.stop_request.unlink(missing_ok=True)  # it has been answered
        self.engine.close()
        self.tracker.close()
        return state

    def run_stage(self, index: int) -> bool:
        """The episodes of a stage and its evaluation; False if it was stopped before its end."""
        stage, config = self.config.stages[index], self.config.for_stage(index)
        trainer = self.make_trainer(index, config)
        last = self.stage_done(stage, config)
        if not last:  # else all were done, and its test is left
            self.tracker.say(f"[bold]{stage.name}[/]: episodes {self.progress.stage_episode + 1} to {stage.episodes}")
        while not last:
            tokens = self.progress.tokens
            trainer.episode()
            last, stopping = self.stage_done(stage, config), self.should_stop()
            best = False
            if last or self.validation_due(config.evaluation, tokens):
                best = self.validate(stage.name)
            if best or last or stopping or due(config.tracking.save_every, self.progress.stage_episode):
                self.save(trainer, best)
            if stopping and not (last and index + 1 == len(self.config.stages)):
                return False  # at a stage's end too: its test comes when the run is resumed
        self.order.load_state_dict(trainer.order_state())  # a budget can end a stage with an episode rolled out ahead
        self.test(stage.name)
        if self.accelerator.is_main_process:
            newest = pointers.find(self.folder.checkpoints, LAST)
            assert newest, "it was saved at the end of its last episode"
            pointers.point(self.folder.checkpoints, [stage.name], newest)
            pointers.prune(self.folder.checkpoints)
        self.progress.stage, self.progress.stage_episode = index + 1, 0
        return True

    def stage_done(self, stage: StageConfig, config: RunConfig) -> bool:
        """Whether the stage has had its episodes, or one of the budgets is used up; the same answer on every rank."""
        done = self.progress.stage_episode >= stage.episodes or self.progress.spent(config.budget)
        return on_main(lambda: done)  # every rank has a clock of its own

    def validation_due(self, options: EvaluationConfig, tokens: int) -> bool:
        """Whether it is, after an episode before which ``tokens`` had been generated; all ranks count the same."""
        step = options.every_tokens
        passed = step > 0 and tokens // step < self.progress.tokens // step
        return passed or due(options.every, self.progress.stage_episode)

    def make_trainer(self, index: int, config: RunConfig) -> Trainer:
        """The trainer of a stage: a fresh optimiser and an empty buffer, or those of the checkpoint."""
        optimizer, scheduler = make_optimizer(config, self.trained)
        selector = make_stage_selector(config, index)
        if self.resume_from and self.progress.stage_episode:
            checkpoint.load_optimizer(self.resume_from, optimizer)
            selector.load_state_dict(checkpoint.load_selector_state(self.resume_from))
            scheduler.load_state_dict(checkpoint.load_trainer_state(self.resume_from)["scheduler"])
        self.resume_from = None
        update = PolicyUpdate(
            config,
            self.policy,
            self.forward,
            optimizer,  # not accelerator.prepare(optimizer): accelerate would keep the states of every stage alive
            scheduler,
            self.accelerator,
            self.reference if config.grpo.kl_coef else None,
        )
        return Trainer(
            config,
            self.config.stages[index].name,
            policy=self.policy,
            forward=self.forward,
            engine=self.engine,
            order=self.order,
            selector=selector,
            update=update,
            tracker=self.tracker,
            accelerator=self.accelerator,
            progress=self.progress,
            usual_gap=self.usual_gap,
            phases=self.phases,
            stage_episodes=self.config.stages[index].episodes,
        )

    def save(self, trainer: Trainer, best: bool) -> None:
        """A checkpoint of the current state, by all ranks."""
        self.phases.enter("save")
        checkpoint.save_checkpoint(
            self.folder.checkpoints,
            self.progress.step,
            policy=self.policy,
            optimizer=trainer.update.optimizer,
            selector_state=trainer.selector.state_dict(),
            trainer_state={
                "progress": asdict(self.progress),
                "order": trainer.order_state(),
                "scheduler": trainer.update.scheduler.state_dict(),
                "best": self.best,
                "seconds": self.tracker.seconds,
                "usual_gap": self.usual_gap,
            },
            best=best,
            keep_last=self.config.tracking.keep_last,
        )
        self.write_status("running")
        self.accelerator.wait_for_everyone()
        if is_sharded(self.forward) and isinstance(self.engine, TransformersEngine):
            self.engine.sync_weights(self.policy.model)  # it had them whole; what was saved are shards

    def validate(self, stage: str) -> bool:
        """Greedy accuracy on the validation split; True if it is the best of the run so far."""
        if not self.validation_queries:
            return False
        self.phases.enter("validation")
        part = validate(
            self.engine,
            self.policy,
            self.mine(self.validation_queries),
            sampling=sampling(self.config),
            seed=self.config.seed,
        )
        metrics = Evaluation.merge(gather_object([part])).validation_metrics()
        self.tracker.log("validation", stage, self.progress.episode, self.progress.step, metrics)
        accuracy = metrics["validation/accuracy"]
        assert accuracy is not None
        self.tracker.say(f"validation, greedy: {accuracy:.3f}")
        best = self.best is None or accuracy > self.best
        self.best = accuracy if self.best is None else max(accuracy, self.best)
        return best

    def test(self, label: str) -> None:
        """The evaluation of the current policy on the test split, written to ``evaluation/<label>.*``."""
        if not self.test_queries:
            return
        self.phases.enter("test")
        part = test_policy(self.config, self.policy, self.engine, self.mine(self.test_queries))
        result = Evaluation.merge(gather_object([part]))
        if self.accelerator.is_main_process:
            result.save(self.folder, label)
            self.tracker.evaluation(label)
        self.accelerator.wait_for_everyone()

    def mine(self, queries: list[Query]) -> list[Query]:
        """This rank's part of an evaluation."""
        return queries[self.accelerator.process_index :: self.accelerator.num_processes]

    def request_stop(self, *_: Any) -> None:
        """Signal handler: save and stop at the end of the episode."""
        self.stop_requested = True

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop; the same answer everywhere. Raises RunMoved as ``check_writer`` does."""
        check_writer(self.folder, self.lock)
        if self.accelerator.is_main_process and self.folder.stop_request.exists():
            self.stop_requested = True
        return any(gather_object([self.stop_requested]))

    def leave(self) -> None:
        """End the process group. A rank that merely exits, with its connections open, can take another one that is
        still at its last words down with it: a run that has saved everything would end with exit code 1."""
        self.accelerator.wait_for_everyone()
        self.phases.close()
        self.accelerator.end_training()

    def write_status(self, state: str) -> None:
        """Write the state of the run into its folder. Progress above zero says that there is a checkpoint."""
        if self.accelerator.is_main_process:
            status = {"state": state, "progress": asdict(self.progress)}
            atomic_write_text(self.folder.status, json.dumps(status))


def due(every: int, count: int) -> bool:
    """Whether an action that happens every ``every`` times (0: never) is due."""
    return every > 0 and count % every == 0


def main(make_sink: MakeSink) -> None:
    """Entry point of every process of a run; command line: ``CONFIG.yaml [--resume]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    disable_progress_bar()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which requests an orderly stop
    config = load_config(arguments.config)
    with exclusive_writer(config.folder) as lock:
        run = TrainingRun(config, resume=arguments.resume, lock=lock, make_sink=make_sink)
        try:
            with run.phases.explaining():
                run.run()
                run.leave()
        except OSError:
            check_writer(config.folder, lock)  # a file that is not found, where the folder was moved between two looks
            raise
