"""Images in a zip archive beside the data: named without being unpacked, written when they are first needed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rethinker.datasets.io import load_queries
from rethinker.policy.archive import cache_folder, file_size, open_archive, opened, present
from rethinker.policy.pictures import ImageError, open_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def row(qid: str, *images: str) -> dict:
    return {"question": "<image>" * len(images) + "?", "answer": "\\boxed{1}", "qid": qid, "image": list(images)}


def zipped(folder: Path, prefix: str = "images/", colours: tuple[str, ...] = ("red", "blue")) -> Path:
    """``images.zip`` with a picture of each colour, and something that leaves its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for colour in colours:
            Image.new("RGB", (28, 28), colour).save(folder / "x.png")
            archive.write(folder / "x.png", f"{prefix}{colour}.png")
        archive.writestr("../outside.png", b"")
        archive.writestr("images/bad.png", b"no picture")
    (folder / "x.png").unlink()
    return folder / "images.zip"


def written() -> list[str]:
    return sorted(path.name for path in cache_folder().rglob("*.png"))


@pytest.mark.parametrize("prefix", ["images/", ""])
def test_rows_name_members_and_only_what_is_opened_is_written(tmp_path: Path, prefix: str) -> None:
    zipped(tmp_path / "data", prefix)
    names = ("images/red.png", "images/bad.png", "images/../../outside.png", "images/none.png")
    rows = [row("two", "images/red.png", "images/blue.png"), *(row(name, name) for name in names[1:])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "39Krelease.parquet")
    (query,), dropped = load_queries(tmp_path / "data")
    assert [(fault.qid, fault.reason) for fault in dropped] == [
        (names[1], "unreadable image"), (names[2], "missing image"), (names[3], "missing image")
    ]  # fmt: skip
    assert "nor in images.zip" in dropped[2].detail
    assert not written()  # the check did not need files
    red, blue = query.images
    assert open_image(red).getpixel((0, 0)) == (255, 0, 0)
    assert written() == ["red.png"] and Path(red).read_bytes() == opened(red).read()
    assert file_size(blue) == len(opened(blue).read()) and written() == ["red.png"]


def test_a_file_beside_the_archive_comes_first(tmp_path: Path) -> None:
    zipped(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (28, 28), "green").save(tmp_path / "images" / "red.png")
    pq.write_table(pa.Table.from_pylist([row("a", "images/red.png", "images/blue.png")]), tmp_path / "a.parquet")
    (query,), _ = load_queries(tmp_path / "a.parquet")
    assert query.images[0] == str(tmp_path / "images" / "red.png") and open_image(query.images[1])


def test_paths_depend_on_the_content_alone(tmp_path: Path) -> None:
    one, moved = open_archive(zipped(tmp_path / "a")), open_archive(zipped(tmp_path / "b"))
    other = open_archive(zipped(tmp_path / "c", colours=("red", "green")))
    assert one.folder == moved.folder != other.folder
    (tmp_path / "a" / "images.zip").unlink()
    red = one.find("images/red.png")
    assert red and present(red).is_file()  # from b, which was opened last


def test_what_cannot_be_taken_out_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = zipped(tmp_path)
    archive = open_archive(path)
    red, blue = archive.find("images/red.png"), archive.find("images/blue.png")
    data = bytearray(path.read_bytes())
    data[60] ^= 255  # in the first member's bytes
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"query 'q': cannot read image .*red\.png'.* in .*images\.zip"):
        open_image(str(red), "q")
    assert not written()
    path.unlink()
    open_archive_again = pytest.raises(ValueError, match=r"cannot read the archive .*; was the download cut short\?")
    path.write_bytes(b"half a file")
    with open_archive_again:
        open_archive(path)
    assert blue
