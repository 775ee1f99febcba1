"""Fixtures that several test files share: a tiny Qwen2.5-VL with random weights, and queries with real images."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shell starts background jobs with SIGINT ignored, and Python keeps it so; the tests of Ctrl-C need Python's handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for each other
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    # torch finds compiled code again without looking at it (rethinker.policy.cpu.keep_compiled_code_apart).
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"torchinductor-{capability}"))

# The same examples every time, and no clock: a slow machine is not a failure.
settings.register_profile(
    "rethinker", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=False
)
settings.load_profile("rethinker")


# Files by how long they take, longest first, so that xdist's workers (a file each, in this order) end together.
LONG = (
    *("notebooks", "browser", "jobs", "kernel", "forward", "distributed", "plan_tracker", "anywhere"),
    *("benchmarks", "sharding", "ablate", "cpu"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture
def untouched_determinism(monkeypatch):
    """What ``use_deterministic_algorithms`` sets, put back afterwards."""
    import torch

    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC", "VLLM_BATCH_INVARIANT"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that it is put back
        monkeypatch.delenv(name)
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def random_weights(model, seed: int = 0) -> None:
    """Weights large enough that images and contexts matter to the output (freshly initialised ones are almost flat)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)


@pytest.fixture(scope="session")
def randomise():
    """``randomise(model, seed)`` gives a model weights that matter."""
    return random_weights


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A checkpoint folder of the tiny Qwen2.5-VL with random weights."""
    from rethinker.tiny.model import save_policy, tiny_model, tiny_processor, train_tokenizer

    corpus = ["user\nHow many red circles are there?", "assistant\nThe answer is \\boxed{23}.", "\n\nWait, let's see."]
    tokenizer = train_tokenizer(corpus * 20)
    model = tiny_model(tokenizer, seed=0)
    random_weights(model)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_policy(folder, model, tiny_processor(tokenizer))
    return folder


@pytest.fixture(scope="session")
def image_files(tmp_path_factory) -> list[str]:
    """Six noise images, three sizes."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    paths = []
    for index, (width, height) in enumerate([(64, 64), (64, 64), (96, 48), (32, 64), (64, 64), (96, 48)]):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="session")
def queries(image_files):
    """No image, one, two of different sizes, one in the middle of the text, and a repeated one."""
    from rethinker.types import Query

    a, b, c, d, *_ = image_files
    return [
        Query("text", "What is 2 + 3?", "5"),
        Query("one", "<image>How many circles?", "3", (a,)),
        Query("two", "<image>Compare with <image>: which is larger?", "A", (b, c)),
        Query("middle", "Look at <image>and say the sum of all the numbers in it.", "7", (d,)),
        Query("again", "<image>And how many squares are there?", "1", (a,)),
    ]


@pytest.fixture(scope="session")
def world(tmp_path_factory, image_files) -> Path:
    """A small data set in ViRL39K's schema, half of it without images: train, validation and test."""
    from tiny_training import write_world

    return write_world(tmp_path_factory.mktemp("world"), image_files)


@pytest.fixture(scope="session")
def guesser(tmp_path_factory, tiny_folder, world) -> Path:
    """A tiny checkpoint that answers the questions of ``world`` with 1 or 2 at random."""
    from tiny_training import teach_guessing

    from rethinker.datasets.io import load_queries

    queries, _ = load_queries(world / "train.parquet")
    return teach_guessing(tiny_folder, tmp_path_factory.mktemp("guesser") / "model", queries[:4])


@pytest.fixture
def untouched_process():
    """A run sets accelerate's state, torch's threads and signal handlers; the test starts and ends without."""
    from tiny_training import fresh_process

    with fresh_process():
        yield
