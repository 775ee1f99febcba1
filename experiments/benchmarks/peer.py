"""The peer's side: TRL's GRPOTrainer on the same model, queries and rewards, stopped after every step.

Its ``train()`` is one loop that does not return; a callback at the end of a step answers the driver and waits there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from channel import Driver, digest
from datasets import Dataset, Image
from datasets import Sequence as ListOf
from meter import Meter, scoring_part
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from world import LEARNING_RATE, SEED, Point, check_lengths, grade_by_parity, never_sampled, queries_in_order


class StepByStep(TrainerCallback):
    """Makes a step whenever the driver asks for one."""

    def __init__(self, driver: Driver, meter: Meter, ready: dict[str, Any]) -> None:
        self.driver, self.meter, self.ready = driver, meter, ready
        self.prompts: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Everything is loaded; wait for the first command."""
        self.meter.watch_optimizer(optimizer.optimizer)
        self._wait(self.ready, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done: batch fetched, responses generated and scored, forward, backward, update."""
        self._wait({**self.meter.stop(), "prompts": self.prompts}, control)

    def _wait(self, answer: dict[str, Any], control: Any) -> None:
        self.driver.send(answer)
        if self.driver.receive() is None:
            control.should_training_stop = True
        self.meter.start()


def rewards(completions: Sequence[Any], answer: Sequence[str], question: Sequence[str], **_: Any) -> list[float]:
    """Our side's grader and verdicts as a reward function of TRL's."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(grade.correct) for grade in grade_by_parity(list(zip(texts, answer, question, strict=True)))]


def data_set(file: Path) -> Dataset:
    """The queries in our side's order; images are files that are decoded when a batch is fetched."""
    rows = [
        {
            "prompt": [{"role": "user", "content": query.question.removeprefix("<image>")}],
            "images": list(query.images),
            "answer": query.answer,
            "question": query.question,
        }
        for query in queries_in_order(file)
    ]
    return Dataset.from_list(rows).cast_column("images", ListOf(Image()))


def settings(point: Point, micro_batch: int, banned: list[int], job: Mapping[str, Any]) -> GRPOConfig:
    """float32, no checkpointing, no vLLM, no KL: the step that our side makes."""
    return GRPOConfig(
        output_dir=job["folder"],
        seed=SEED,
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=point.samples // micro_batch,
        num_generations=point.group,
        max_completion_length=point.tokens,
        temperature=1.0,
        generation_kwargs={"suppress_tokens": banned},
        use_vllm=False,
        loss_type="grpo",
        beta=0.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        max_steps=job["steps"],
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
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
    meter = Meter()
    processor = AutoProcessor.from_pretrained(job["model"])
    model = AutoModelForImageTextToText.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    meter.loaded()
    ready = {"parameters": model.num_parameters(), "loaded_mb": meter.loaded_mb, "trl": trl.__version__}
    steps = StepByStep(driver, meter, ready)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=settings(point, micro_batch, never_sampled(processor.tokenizer), job),
        train_dataset=data_set(Path(job["queries"][point.name])),
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
