"""The exported queries with Rethinker's grader as the reward, for verifiers (0.4, ``verifiers.v1``) and prime-rl."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import verifiers.v1 as vf

from rethinker.grading import grade

__all__ = ["RethinkerTaskset"]
DATA = Path(__file__).resolve().parents[1] / "data"


class RethinkerData(vf.TaskData):
    """A query: its prompt, and what the grader needs."""

    question: str
    answer: str


class RethinkerTask(vf.Task[RethinkerData]):
    """Rewarded by the correctness of the last boxed answer, 0 or 1."""

    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        """Whether the answer is right; long ones are graded in worker processes, so not in the event loop."""
        verdict = await asyncio.to_thread(grade, trace.last_reply, self.data.answer, question=self.data.question)
        return float(verdict.correct)


class RethinkerConfig(vf.TasksetConfig):
    """Where the data is: ``<folder>/<split>.parquet``."""

    folder: str = str(DATA)
    split: str = "train"


class RethinkerTaskset(vf.Taskset[RethinkerTask, RethinkerConfig]):
    """The queries in the order of the file."""

    def load(self) -> Iterator[RethinkerTask]:
        """Read row by row: the images of all together may not fit into memory."""
        with pq.ParquetFile(Path(self.config.folder, f"{self.config.split}.parquet")) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    data = RethinkerData(
                        id=row["qid"],
                        prompt=[vf.UserMessage(content=parts(row["prompt"], row["images"]))],
                        question=row["question"],
                        answer=row["answer"],
                    )
                    yield RethinkerTask(data, self.config.task)


def parts(text: str, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content of a message: ``text`` with an image for each ``<image>``, as data URLs."""
    if not images:
        return [{"type": "text", "text": text}]
    pieces = text.split("<image>")
    content: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
    for image, piece in zip(images, pieces[1:], strict=True):
        kind = "png" if image["bytes"].startswith(b"\x89PNG") else "jpeg"
        url = f"data:image/{kind};base64,{base64.b64encode(image['bytes']).decode()}"
        content += [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": piece}]
    return [part for part in content if part.get("text") != ""]
