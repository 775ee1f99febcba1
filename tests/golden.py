"""Five small episodes of the tiny VLM, and what is remembered of them in golden.json.

``python tests/golden.py`` makes the file anew: where a change of the numbers is meant, and with a word in the commit.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tiny_training import fresh_process

FILE = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[1]
DATA = ROOT / "data" / "visual_math" / "test.parquet"
SETTINGS = (
    "name=golden",
    f"model.path={ROOT / 'data' / 'tiny-vlm'}",
    f"data.train={DATA}",
    f"data.validation={DATA}",
    "data.test=null",
    "rollout.engine=transformers",
    "launch.processes=1",
    "queries_per_episode=6",
    "optim.train_batch_size=16",
    "optim.micro_batch_tokens=512",
    "optim.lr=5e-4",  # high enough that ratios are clipped
    "optim.warmup_steps=0",
    "replay.capacity=64",
    "evaluation.every=0",
    "tracking.save_every=0",
    "stages=[{name: reasoner, episodes: 2}, {name: rethinker, episodes: 3, overrides: {rethink: {fraction: 0.9}}}]",
)  # the rest as in experiments/tiny.yaml: SSR with lifetime 4 among it


def machine() -> dict[str, str]:
    """What the last bits of a float32 result depend on. Equal here: the run is equal bit for bit."""
    import torch

    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else []
    processor = [line for line in lines if line.partition("\t")[0].strip() in wanted]
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if re.match("ONEDNN_|DNNL_|MKL_|ATEN_", k))
    facts = ["\n".join(processor), *(path.read_text() for path in caches), *settings]
    packages = ("torch", "transformers", "tokenizers", "numpy", "pillow")
    return {
        "processor": hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16],
        "system": f"{platform.system()} {platform.machine()}",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": " ".join(f"{name}=={version(name)}" for name in packages),
    }


def play(folder: Path) -> dict[str, Any]:
    """Make the run in ``folder``; what it asked for, wrote, drew and measured."""
    import pandas as pd
    from safetensors.torch import load_file

    from rethinker.config import load_config
    from rethinker.replay import SelectiveSampleReplay
    from rethinker.rollout import TransformersEngine
    from rethinker.run import TrainingRun

    asked: list[Any] = []
    batches: list[tuple[int, list[str]]] = []
    generate, select = TransformersEngine.generate, SelectiveSampleReplay.select

    def remember_requests(self: Any, requests: Any, sampling: Any) -> Any:
        if sampling.temperature > 0:
            asked.append(requests)
        return generate(self, requests, sampling)

    def remember_batch(self: Any, samples: Any) -> Any:
        batch = select(self, samples)
        names = [short(sample.sample_id) + "*" * sample.replayed for sample in batch]
        batches.append((samples[0].episode, names))
        return batch

    config = load_config(ROOT / "experiments" / "tiny.yaml", [f"runs_dir={folder}", *SETTINGS])
    with fresh_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", remember_requests)
        patch.setattr(SelectiveSampleReplay, "select", remember_batch)
        assert TrainingRun(config).run() == "finished"

    episodes: list[dict[str, Any]] = []
    for path in sorted((config.folder / "rollouts").glob("*.parquet")):
        responses: dict[str, list[str]] = {}
        forced: dict[str, list[str]] = {}
        for row in pd.read_parquet(path).to_dict("records"):
            text = f"{zlib.crc32(row['text'].encode()):08x}{'+' if row['correct'] else '-'}"
            if row["pass"] == "first":
                responses.setdefault(short(row["qid"]), []).append(text)
            else:
                forced[short(row["sample_id"])] = [row["trigger"], text]
        episodes.append({"responses": responses, "forced": forced, "batches": []})
    for episode, batch in batches:
        episodes[episode - 1]["batches"].append(batch)
    weights = load_file(config.folder / "checkpoints" / "last" / "model" / "model.safetensors")
    lines = [json.loads(text) for text in (config.folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "machine": machine(),
        "requests": [{short(request.request_id): request.seed for request in requests} for requests in asked],
        "episodes": episodes,
        "metrics": [without_clocks(line) for line in lines],
        "weights": hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest(),
    }


def short(name: str) -> str:
    return name.replace("visual-math-2504-test-", "")


def without_clocks(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what a clock measured; of a histogram the bins that hold something."""
    clocks = re.compile("seconds|time/.*|rollout/tokens_per_second")
    kept = {name: value for name, value in line.items() if not clocks.fullmatch(name)}
    sparse = {name: value for name, value in kept.items() if isinstance(value, dict)}
    return kept | {
        name: {str(i): count for i, count in enumerate(value["counts"]) if count} for name, value in sparse.items()
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = play(Path(folder))
    # A line an entry, so that a difference can be read.
    lists = {
        name: "[\n  " + ",\n  ".join(map(json.dumps, v)) + "\n ]" for name, v in found.items() if isinstance(v, list)
    }
    entries = [f' "{name}": {lists.get(name) or json.dumps(value)}' for name, value in found.items()]
    FILE.write_text("{\n" + ",\n".join(entries) + "\n}\n")


if __name__ == "__main__":
    main()
