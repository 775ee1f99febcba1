"""The peer's side: TRL's GRPOTrainer on the same model, queries and rewards, stopped after every step.

Its ``train()`` is one loop that does not return; a callback at the end of a step answers the driver and waits there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import trl
from channel import Driver, digest
from datasets import Dataset
from meter import Meter, scoring_part
from PIL import Image
from rates import machine_rates
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from world import LEARNING_RATE, SEED, Point, check_lengths, grade_by_parity, never_sampled, queries_in_order

from rethinker.looks import GradeMany
from rethinker.processes import keep_freed_memory
from rethinker.types import Query


class StepByStep(TrainerCallback):
    """Makes a step whenever the driver asks for one."""

    def __init__(self, driver: Driver, meter: Meter, ready: dict[str, Any], rates: Callable[[], Any]) -> None:
        self.driver, self.meter, self.ready, self.rates = driver, meter, ready, rates
        self.prompts: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Everything is loaded; wait for the first command."""
        self.meter.watch_optimizer(optimizer.optimizer)
        self._wait(self.ready, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done: batch fetched, responses generated and scored, forward, backward, update."""
        measured = self.meter.stop()
        self._wait({**measured, "prompts": self.prompts, "rates": self.rates()}, control)

    def _wait(self, answer: dict[str, Any], control: Any) -> None:
        self.driver.send(answer)
        command = self.driver.receive()
        if command is None:
            control.should_training_stop = True
        else:
            self.meter.start(command["count"])


def reward_function(grade: GradeMany) -> Callable[..., list[float]]:
    """A grader of ours and its verdicts as a reward function of TRL's."""

    def correctness(
        completions: Sequence[Any], answer: Sequence[str], question: Sequence[str], **_: Any
    ) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [float(verdict.correct) for verdict in grade(list(zip(texts, answer, question, strict=True)))]

    return correctness


def data_set(queries: Iterable[Query]) -> Dataset:
    """The queries in their order. TRL fetches a query for each of its responses and each update; its image is decoded
    once.
    """
    rows = [
        {
            "prompt": [{"role": "user", "content": query.question.removeprefix("<image>")}],
            "images": list(query.images),
            "answer": query.answer,
            "question": query.question,
        }
        for query in queries
    ]
    return Dataset.from_list(rows).with_transform(_with_pictures)


def _with_pictures(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return batch | {"images": [[_picture(path) for path in paths] for paths in batch["images"]]}


@lru_cache(1024)
def _picture(path: str) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def plain_settings(**own: Any) -> GRPOConfig:
    """No checkpointing, no vLLM, no KL, no files: what both sides leave out. ``own``: the rest."""
    return GRPOConfig(
        use_cpu=True,
        fp16=False,
        gradient_checkpointing=False,
        use_vllm=False,
        loss_type="grpo",
        beta=0.0,
        shuffle_dataset=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        **own,
    )


def settings(point: Point, micro_batch: int, banned: list[int], job: Mapping[str, Any]) -> GRPOConfig:
    """The step that our side makes."""
    return plain_settings(
        output_dir=job["folder"],
        seed=SEED,
        bf16=job["dtype"] == "bfloat16",
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=point.samples // micro_batch,
        num_generations=point.group,
        max_completion_length=point.tokens,
        temperature=1.0,
        generation_kwargs={"suppress_tokens": banned},
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_steps=job["steps"],
        logging_steps=1,
    )


def main() -> None:
    """Answer the driver."""
    driver = Driver()
    job = driver.receive()
    assert job is not None
    (point,) = (Point(**point) for point in job["points"])
    micro_batch = job["micro_batch"] or point.samples
    torch.set_num_threads(1)
    keep_freed_memory()  # as our runs do on a CPU
    meter = Meter()
    processor = AutoProcessor.from_pretrained(job["model"])
    model = AutoModelForImageTextToText.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    meter.loaded()
    ready = {"parameters": model.num_parameters(), "loaded_mb": meter.loaded_mb, "trl": trl.__version__}
    steps = StepByStep(driver, meter, ready, lambda: machine_rates(model, point.samples, getattr(torch, job["dtype"])))
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward_function(grade_by_parity),
        args=settings(point, micro_batch, never_sampled(processor.tokenizer), job),
        train_dataset=data_set(queries_in_order(Path(job["queries"][point.name]))),
        processing_class=processor,
        callbacks=[steps],
    )
    meter.watch(model, trainer.accelerator)
    meter.watch_preprocessing(type(processor.image_processor))
    score = meter.wrap(trainer._get_per_token_logps_and_entropies, scoring_part)
    trainer._get_per_token_logps_and_entropies = score
    generate = meter.wrap(trainer._generate, "generation")

    def checked(prompts: list[Any]) -> Any:
        found = generate(prompts)
        check_lengths("TRL", found[1], point)
        steps.prompts = [digest(prompt) for prompt in found[0][:: point.group]]
        return found

    trainer._generate = checked
    trainer.train()


if __name__ == "__main__":
    main()
