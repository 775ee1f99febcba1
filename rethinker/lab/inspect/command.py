"""``rethinker data inspect``: the data card of a place, and a contact sheet."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

from rethinker.lab.command_line import command, option, settings

PLACES = Path("runs", "inspect")


@command(
    "data",
    "Print the card of a data set (what is in it, what cannot be used, what filters keep) and write a contact sheet.",
    option("action", choices=("inspect",)),
    option("place", help="a file, folder or name on the hub, also with :split; or a config, whose data.train is meant"),
    settings("e.g. data.filter=vl-rethinker-7b data.columns.question=problem"),
    option("--model", help="also count the tokens of prompts, by this model's processor"),
    option("--images", type=int, default=300, help="images that are opened (default: %(default)s)"),
    option("--out", type=Path, help=f"folder for the files; default: {PLACES}/<place>"),
)
def data(action: str, place: str, overrides: list[str], model: str | None, images: int, out: Path | None) -> int:
    from rethinker.config import load_config
    from rethinker.lab.inspect.card import make_card
    from rethinker.lab.inspect.sheet import contact_sheet
    from rethinker.lab.jobs.preflight import check_data
    from rethinker.rundir.atomic import atomic_write_text

    if place.endswith((".yaml", ".yml")):
        config = load_config(place, typed=overrides)
    else:
        config = load_config(typed=overrides)
        config = replace(config, data=replace(config.data, train=place))
    if model:
        config = replace(config, model=replace(config.model, path=model))
    source = config.data.train
    check_data("place", source, config.data.columns_for("train"))
    card, queries = make_card(config, images=images, tokens=model is not None)
    print(card)
    out = out or PLACES / re.sub(r"[^\w.-]+", "-", source).strip("-.")
    atomic_write_text(out / "card.md", f"{card}\n")
    atomic_write_text(out / "unusable.json", json.dumps([asdict(row) for row in card.dropped], indent=1))
    print(f"\nwritten: {out / 'card.md'}, {out / 'unusable.json'}")
    if queries:
        print(f"written: {contact_sheet(out / 'contact-sheet.png', queries)}")
    return 0
