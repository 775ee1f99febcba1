"""The pictures at the top of the notebooks: notebooks/images/NN.png, from executed copies.

    .venv/bin/python scripts/notebook_pictures.py [FOLDER]

FOLDER holds executed copies (default: experiments/results/notebooks/smoke, where `make notebooks` writes them). The
picture is the first figure of the cell tagged ``picture``, made small; two notebooks without such a cell show one of
experiments/results. All are in the notebooks' own folder, because JupyterLab shows nothing from above its root.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = ROOT / "experiments/results/notebooks/smoke"
RESULTS = {"01": "visual_math.png", "06": "overview-light.png"}  # of experiments/results
IMAGES = ROOT / "notebooks/images"
WIDTH, COLORS = 960, 256  # pixels; a palette, so that a picture takes about 30 kB


def figure(executed: Path) -> bytes | None:
    """The first PNG among the outputs of the cell tagged ``picture``; None where no cell has the tag."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "picture" in cell["metadata"].get("tags", ())]
    if not tagged:
        return None
    pictures = [output["data"]["image/png"] for output in tagged[0]["outputs"] if "image/png" in output.get("data", {})]
    if not pictures:
        raise SystemExit(f"{executed}: the cell tagged picture has no figure; did the notebook run to its end?")
    return base64.b64decode(pictures[0])


def make_small(png: bytes) -> Image.Image:
    """At most WIDTH pixels wide, with a palette of COLORS."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    return picture.quantize(COLORS, dither=Image.Dither.NONE)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=EXECUTED)
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args(argv)
    executed = sorted(options.folder.glob("[0-9]*.ipynb"))
    if not executed:
        raise SystemExit(f"{options.folder}: no executed notebooks; run `make notebooks` first")
    options.out.mkdir(parents=True, exist_ok=True)
    for path in executed:
        number = path.stem[:2]
        png = (ROOT / "experiments/results" / RESULTS[number]).read_bytes() if number in RESULTS else figure(path)
        if png:
            target = options.out / f"{number}.png"
            make_small(png).save(target, optimize=True)
            print(f"{target}: {target.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
