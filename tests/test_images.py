"""Images: decoded once, bounded, clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bounds import PIXELS
from PIL import Image

from rethinker.config import ModelConfig
from rethinker.policy.images import ImageStore
from rethinker.policy.loading import load_processor
from rethinker.policy.pictures import ImageError

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def processor(tiny_folder):
    return load_processor(ModelConfig(path=str(tiny_folder))).image_processor


def test_an_image_is_decoded_and_prepared_once(processor, image_files):
    prepared = []

    def counting(**arguments):
        prepared.append(arguments["images"])
        return processor(**arguments)

    store = ImageStore(counting)
    first = store.get(image_files[0])
    again = store.get(image_files[0])
    assert again is first
    assert store.decoded == len(prepared) == 1


def test_pixels_are_those_of_the_formula(processor, image_files):
    """The first patch, by hand: (value / 255 - mean) / std, channels first, the frame twice."""
    pixels = ImageStore(processor).get(image_files[0])
    assert pixels.grid.tolist() == [1, 8, 8]
    assert pixels.values.shape == (64, 3 * 2 * 8 * 8)
    raw = np.asarray(Image.open(image_files[0]), dtype=np.float64)[:8, :8] / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    patch = ((raw - mean) / std).transpose(2, 0, 1)
    expected = np.stack([patch, patch], axis=1).reshape(-1)
    np.testing.assert_allclose(pixels.values[0].numpy(), expected, atol=PIXELS, rtol=0)


def test_the_store_is_bounded_by_bytes(processor, image_files):
    size = ImageStore(processor).get(image_files[0]).values.nbytes
    store = ImageStore(processor, capacity=2 * size)
    for path in (image_files[0], image_files[1], image_files[0], image_files[4]):
        store.get(path)
    assert len(store) == 2
    store.get(image_files[0])  # was used after image 1: still here
    assert store.decoded == 3
    store.get(image_files[1])
    assert store.decoded == 4


def test_an_image_larger_than_the_store_is_served(processor, image_files):
    store = ImageStore(processor, capacity=1)
    assert store.get(image_files[0]).values.nbytes > 1
    assert len(store) == 1


def test_pixel_limits_of_the_config(tiny_folder, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (512, 256), "red").save(path)
    limits = ModelConfig(path=str(tiny_folder), min_pixels=16 * 16, max_pixels=64 * 64)
    grid = ImageStore(load_processor(limits).image_processor).get(str(path)).grid
    assert int(grid.prod()) * 64 <= 64 * 64
    assert grid[2] > grid[1]


def test_contradictory_pixel_limits(tiny_folder):
    with pytest.raises(ValueError, match="min_pixels=20000 is above"):
        load_processor(ModelConfig(path=str(tiny_folder), min_pixels=20000, max_pixels=10000))


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_unreadable_image_names_path_and_query(processor, tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"query 'q7'.*bad\.png"):
        ImageStore(processor).get(str(path), "q7")


def test_missing_and_truncated_images(processor, tmp_path, image_files):
    with pytest.raises(ImageError, match=r"query 'q7'.*none\.png"):
        ImageStore(processor).get(str(tmp_path / "none.png"), "q7")
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(image_files[0]).read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"cut\.png"):
        ImageStore(processor).get(str(cut), "q7")


def test_impossible_aspect_ratio(processor, tmp_path):
    path = tmp_path / "line.png"
    Image.new("RGB", (900, 2)).save(path)
    with pytest.raises(ImageError, match=r"query 'q7'.*line\.png.*900"):
        ImageStore(processor).get(str(path), "q7")
