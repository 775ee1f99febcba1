"""Images from paths to the pixels that the model reads: decoded and preprocessed once, kept while there is room.

There is one image processor, and one store, for the trainer and for every rollout engine: an image is prepared once
for both, and both see the same pixels. Records elsewhere hold paths only.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from rethinker.policy.families import Pixels, patches
from rethinker.policy.pictures import ImageError, open_image


class ImageStore:
    """Least-recently-used store of preprocessed images; the decoded pictures themselves are not kept.

    ``capacity`` bounds the bytes of pixels that are held; the newest image is always kept, however large. (4 GiB: 890
    images of 448 x 448 pixels, an episode's.) ``decoded`` counts the images that were read and prepared: more of them
    than there are distinct images in an episode means that it does not fit. A file is assumed not to change during a
    run. ``prepare``: a PIL image's pixels (default: as Qwen's families have them).
    """

    def __init__(
        self, image_processor: Any, capacity: int = 2**32, prepare: Callable[[Any], Pixels] | None = None
    ) -> None:
        self.image_processor = image_processor
        self.prepare = prepare or partial(patches, image_processor)
        self.capacity = capacity
        self.decoded = 0
        self._lock = threading.Lock()  # an engine may make prompts while the trainer trains
        self._held: OrderedDict[str, Pixels] = OrderedDict()
        self._bytes = 0

    def get(self, path: str, qid: str = "") -> Pixels:
        """The pixels of the image at ``path``. Raises ImageError naming the path and ``qid``."""
        with self._lock:
            return self._get(path, qid)

    def _get(self, path: str, qid: str) -> Pixels:
        if path in self._held:
            self._held.move_to_end(path)
            return self._held[path]
        image = open_image(path, qid)
        try:
            pixels = self.prepare(image)
        except ValueError as error:  # such as an aspect ratio above 200
            raise ImageError(f"query {qid!r}: cannot prepare image {path!r} of size {image.size}: {error}") from error
        self.decoded += 1
        self._held[path] = pixels
        self._bytes += pixels.values.nbytes
        while self._bytes > self.capacity and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= dropped.values.nbytes
        return pixels

    def __len__(self) -> int:
        return len(self._held)
