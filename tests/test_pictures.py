"""Image files of every kind as pictures: what is drawn in black on nothing must be black on white.

Every file shows the same drawing, 12 wide and 8 high: a black L whose foot is at the bottom, on a ground that is white
or transparent, and in one corner a mark in half grey.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rethinker.datasets.checks import image_fault
from rethinker.datasets.io import load_queries
from rethinker.lab.report.html import picture
from rethinker.policy import pictures
from rethinker.policy.pictures import ImageError, open_image

WIDTH, HEIGHT = 12, 8
INK = np.zeros((HEIGHT, WIDTH), dtype=bool)  # the L
INK[1:7, 2:4] = INK[5:7, 2:9] = True
MARK = np.zeros_like(INK)
MARK[0:2, 9:12] = True
GREY = 128
DRAWING = np.where(INK, 0, np.where(MARK, GREY, 255)).astype(np.uint8)  # on white
ALPHA = np.where(INK, 255, np.where(MARK, 127, 0)).astype(np.uint8)  # black ink of this cover on white: the same
TURNED = {  # EXIF orientation -> how a camera stored the drawing
    1: DRAWING,
    2: DRAWING[:, ::-1],
    3: DRAWING[::-1, ::-1],
    4: DRAWING[::-1],
    5: DRAWING.T,
    6: DRAWING.T[::-1],
    7: DRAWING.T[::-1, ::-1],
    8: DRAWING.T[:, ::-1],
}


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(values))


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def palette(transparency: bool) -> Image.Image:
    """Colour 0 is black and the ground, with or without being transparent; 1 is the ink, 2 the mark."""
    image = grey(np.where(INK, 1, np.where(MARK, 2, 0)).astype(np.uint8))
    ground = (0, 0, 0) if transparency else (255, 255, 255)
    image.putpalette([*ground, 0, 0, 0, GREY, GREY, GREY])
    return image


def drawings() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    """What is saved, and how, by the name of the file."""
    black, rgb = Image.new("L", (WIDTH, HEIGHT)), grey(DRAWING).convert("RGB")
    la = Image.merge("LA", [black, grey(ALPHA)])
    # A ground of 7 is transparent; the ink is 0.
    keyed = np.where(INK, 0, np.where(MARK, GREY, 7))
    cmyk = Image.merge("CMYK", [black, black, black, grey(255 - DRAWING)])
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "1.png": (grey(DRAWING > 200), {}),
        "l.png": (grey(DRAWING), {}),
        "rgb.png": (rgb, {}),
        "rgba.png": (Image.merge("RGBA", [black, black, black, grey(ALPHA)]), {}),
        "rgba.webp": (Image.merge("RGBA", [black, black, black, grey(ALPHA)]), {"lossless": True, "exact": True}),
        "rgba.tiff": (Image.merge("RGBA", [black, black, black, grey(ALPHA)]), {}),
        "la.png": (la, {}),
        "p.png": (palette(False), {}),
        "p-transparent.png": (palette(True), {"transparency": 0}),
        "p-transparent.gif": (palette(True), {"transparency": 0}),
        "p-alpha.png": (palette(True), {"transparency": bytes([0, 255, 255])}),
        "l-transparent.png": (grey(keyed.astype(np.uint8)), {"transparency": 7}),
        "rgb-transparent.png": (grey(keyed.astype(np.uint8)).convert("RGB"), {"transparency": (7, 7, 7)}),
        "16.png": (grey(DRAWING.astype(np.uint16) * 257), {}),
        "16.tiff": (grey(DRAWING.astype(np.uint16) * 257), {}),
        "16-transparent.png": (grey(np.where(keyed == 7, 7, keyed * 257).astype(np.uint16)), {"transparency": 7}),
        "32.tiff": (grey(DRAWING.astype(np.int32) * 257), {}),
        "float.tiff": (grey(DRAWING.astype(np.float32) / 255), {}),
        "float-255.tiff": (grey(DRAWING.astype(np.float32)), {}),
        "cmyk.tiff": (cmyk, {}),
        "cmyk.jpg": (cmyk, {"quality": 100}),
        "ycbcr.jpg": (rgb, {"quality": 100, "subsampling": 0}),
        "lab.tiff": (Image.merge("LAB", [grey(DRAWING), *[Image.new("L", black.size, 128)] * 2]), {}),
        "page.pgm": (grey(DRAWING.astype(np.int32) * 257), {}),
        "animated.gif": (grey(DRAWING), {"save_all": True, "append_images": [black], "duration": 50}),
        "animated.webp": (rgb, {"save_all": True, "append_images": [black.convert("RGB")], "lossless": True}),
        "animated.png": (grey(DRAWING), {"save_all": True, "append_images": [black]}),
        "pages.tiff": (grey(DRAWING), {"save_all": True, "append_images": [black]}),
    }
    for orientation, stored in TURNED.items():
        files[f"turned-{orientation}.png"] = (grey(stored), {"exif": oriented(orientation)})
    files["turned-6.tiff"] = (grey(TURNED[6]), {"exif": oriented(6)})
    files["turned-6.webp"] = (grey(TURNED[6]), {"exif": oriented(6), "lossless": True})
    files["turned-6.jpg"] = (grey(TURNED[6]).convert("RGB"), {"exif": oriented(6), "quality": 100, "subsampling": 0})
    files["turned-6-rgba.png"] = (
        Image.merge("RGBA", [Image.new("L", (HEIGHT, WIDTH))] * 3 + [grey(ALPHA.T[::-1])]),
        {"exif": oriented(6)},
    )
    return files


FILES = drawings()
ANIMATED = {"animated.gif", "animated.webp", "animated.png", "pages.tiff"}
# Not exact: JPEG rounds, and LAB is not linear in the values of grey.
INEXACT = {"cmyk.jpg": 24, "ycbcr.jpg": 24, "turned-6.jpg": 24, "lab.tiff": 20}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = {name: str(folder / name) for name in FILES}
    for name, (image, options) in FILES.items():
        image.save(paths[name], **options)
    return paths


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_drawing_is_seen_in_every_kind_of_file(files, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name in ANIMATED else "error")
        image = open_image(files[name])
    assert image.mode == "RGB" and image.size == (WIDTH, HEIGHT)
    expected = np.where(DRAWING > 200, 255, 0) if name == "1.png" else DRAWING
    error = np.abs(np.asarray(image, int) - expected[:, :, None]).max()
    assert error <= INEXACT.get(name, 0), np.asarray(image)[:, :, 0]


@pytest.mark.parametrize("name", sorted(ANIMATED))
def test_of_several_pictures_the_first_is_taken_and_said_once(files, name):
    pictures._say_first.cache_clear()
    with pytest.warns(UserWarning, match=rf"{name}' has several frames or pages: the first one is used") as said:
        assert image_fault(Path(files[name])) is None  # as soon as the data is read
        open_image(files[name])
    assert len(said) == 1


def test_a_preview_in_a_photograph_is_no_second_picture(tmp_path):
    """MPO: a JPEG as phones write it, with a smaller copy behind it."""
    path, rgb = tmp_path / "photo.jpg", grey(DRAWING).convert("RGB")
    rgb.save(path, format="MPO", save_all=True, append_images=[rgb.resize((6, 4))])
    with Image.open(path) as image:
        assert image.format == "MPO" and image.is_animated
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path).size == (WIDTH, HEIGHT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_lose_the_picture(tmp_path):
    path = tmp_path / "damaged.jpg"
    grey(DRAWING).save(path, exif=b"Exif\x00\x00II\x2a\x00\xff\xff\xff\xff", quality=100)
    assert np.abs(np.asarray(open_image(path), int) - DRAWING[:, :, None]).max() <= 24


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((4, 4), 70000, np.int32), "from 70000 to 70000 .mode I., expected 0 to 65535"),
        (np.full((4, 4), -1, np.int32), "from -1 to -1"),
        (np.full((4, 4), 1e6, np.float32), "from 1e.06 to 1e.06 .mode F., expected 0 to 255"),
        (np.full((4, 4), np.nan, np.float32), "from nan to nan"),
    ],
)
def test_values_of_an_unknown_scale_are_refused_when_the_data_is_read(tmp_path, values, said):
    path = tmp_path / "unknown.tiff"
    grey(values).save(path)
    with pytest.raises(ImageError, match=rf"query 'q': cannot read image '.*unknown\.tiff': grey values {said}"):
        open_image(path, "q")
    reason, detail = image_fault(path)
    assert reason == "unreadable image" and "grey values from" in detail


def test_pages_show_what_the_policy_sees(files):
    """The report's and the notebooks' pictures; W&B's are in test_wandb."""
    for name in ("rgba.png", "turned-6.png", "16.png"):
        found = picture(files[name])
        shown = Image.open(io.BytesIO(base64.b64decode(found.source.partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(open_image(files[name])))


def test_a_byte_order_mark_is_read(tmp_path, files):
    lines = [json.dumps({"question": "?", "answer": "1", "qid": f"q{index}", "image": []}) for index in range(2)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    assert (tmp_path / "train.jsonl").read_bytes().startswith(b"\xef\xbb\xbf")
    queries, dropped = load_queries(tmp_path / "train.jsonl")
    assert [query.qid for query in queries] == ["q0", "q1"] and not dropped
