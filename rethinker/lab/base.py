"""``rethinker make-data | pretrain-tiny``: what the default experiment starts from. Nothing here is from the paper."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from rethinker.lab.command_line import command, option


@command(
    "make-data",
    "Generate visual-math data in ViRL39K's schema.",
    option("--out", type=Path, default=Path("data/generated/visual_math"), help="folder (default: %(default)s)"),
    option("--train", type=int, default=4000, help="queries (default: %(default)s)"),
    option("--validation", type=int, default=120, help="queries (default: %(default)s)"),
    option("--test", type=int, default=360, help="queries (default: %(default)s)"),
    option("--seed", type=int, default=0),
    option(
        "--kinds", nargs="+", help="of questions, in turn: one named twice comes twice as often (default: each once)"
    ),
    option("--contact-sheet", type=Path, help="also save a PNG that shows every kind and level"),
)
def make_data(
    out: Path, train: int, validation: int, test: int, seed: int, kinds: list[str] | None, contact_sheet: Path | None
) -> int:
    from rethinker.datasets.world import visual_math

    visual_math.make_data(out, train, validation, test, seed, kinds or visual_math.KINDS)
    print(f"written: {out}")
    if contact_sheet:
        print(f"written: {visual_math.contact_sheet(contact_sheet)}")
    return 0


@command(
    "pretrain-tiny",
    "Pretrain and measure the tiny VLM that the default experiment starts from.",
    option("--out", type=Path, default=Path("data/tiny-vlm"), help="folder (default: %(default)s)"),
    option("--size", default="1m", help="250k, 1m, 4m or 15m parameters (default: %(default)s, the committed one's)"),
    option("--steps", type=int, help="optimizer steps (default: those of the committed checkpoint)"),
    option("--seed", type=int, default=0),
    option("--threads", type=int, default=2, help="CPU threads (default: %(default)s)"),
    option("--resume", action="store_true", help="go on with the one in this folder that was stopped, if there is one"),
)
def pretrain_tiny(out: Path, size: str, steps: int | None, seed: int, threads: int, resume: bool) -> int:
    import torch

    from rethinker.tiny import pretrain
    from rethinker.tiny.curriculum import PretrainSettings
    from rethinker.tiny.measures import document_base

    if resume and (out / "README.md").exists() and not (out / pretrain.STATE).exists():
        print(f"{out} is finished; without --resume it is made again")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    settings = PretrainSettings(size=size, seed=seed)
    if steps is not None:
        settings = replace(settings, steps=steps)
    minutes = pretrain.pretrain_tiny(out, settings, resume) / 60
    plural = "s" if threads > 1 else ""
    options = {"out": out, "size": size, "steps": steps, "seed": seed, "threads": threads}
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    measures = document_base(
        out,
        settings,
        command=shlex.join(["rethinker", "pretrain-tiny", *given]),
        made=f"{settings.steps:,} steps in {minutes:.0f} minutes on {threads} CPU thread{plural}",
    )
    (out / pretrain.STATE).unlink(missing_ok=True)  # it has done its work
    first, forced = measures.first_sampled, measures.forced_sampled
    print(f"written: {out}; accuracy of the first pass {first:.3f}, after a forced second look {forced:.3f}")
    return 0
