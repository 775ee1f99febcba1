"""What would end a run in mid-episode, found when the data is loaded: images that cannot be read, special tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from rethinker.policy.archive import opened
from rethinker.policy.pictures import UNSCALED, ImageError, animated, open_image

MAX_ASPECT_RATIO = 200  # Qwen's image processor takes no longer images
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]{4,}\|>")  # <|im_end|>, <|image_pad|>, ...; not the <|b|> of a formula
_JPEG_END = b"\xff\xd9"


def special_token(text: str) -> str | None:
    """The first special token of the chat format in ``text``: it would be one in the prompt, too."""
    found = _SPECIAL_TOKEN.search(text)
    return None if found is None else found.group()


def image_fault(path: Path) -> tuple[str, str] | None:
    """(reason, detail) of an image that the policy cannot take; None for a good one.

    Reads what shows a file cut short and no more: a PNG's checksums, the end of a JPEG; other formats are decoded, and
    so are pictures that ``open_image`` has something to say about. A JPEG damaged in its middle decodes, to wrong
    pixels.
    """
    try:
        with opened(path) as file, Image.open(file) as image:
            width, height = image.size
            if image.format == "PNG" and image.mode not in UNSCALED and not animated(image):
                image.verify()
            elif image.format != "JPEG" or not _ends_with(file, _JPEG_END):
                open_image(path)
    except ImageError as error:  # names the file
        return "unreadable image", str(error)
    except UnidentifiedImageError:  # its text shows the open file
        return "unreadable image", f"{path}: not of a kind that Pillow reads"
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return "unreadable image", f"{path}: {error}"
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return "extreme aspect ratio", f"{path} is {width} x {height}; at most {MAX_ASPECT_RATIO} : 1"
    return None


def _ends_with(file: BinaryIO, end: bytes) -> bool:
    file.seek(-len(end), 2)
    return file.read() == end
