"""The GPUs of this machine, by the names that child processes are given them by. Nothing here is from the paper."""

from __future__ import annotations

import os
from itertools import takewhile


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show, as CUDA_VISIBLE_DEVICES names them; [] if it shows none.

    As CUDA does, the list is read up to its first entry that names no GPU ("-1" hides them all).
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch  # here: it takes seconds

        return [str(index) for index in range(torch.cuda.device_count())]
    items = (item.strip() for item in named.split(","))
    return list(takewhile(lambda item: item.isdecimal() or item.startswith(("GPU-", "MIG-")), items))
