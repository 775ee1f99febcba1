"""The C library's memory allocator, told to keep what is freed: a training step frees and takes the same megabytes
again and again, and the system would hand them out page by page, zeroed, each time.
"""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt(3): parameters, and the largest threshold that it takes on 64-bit machines.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_THRESHOLD = 2**25
KEPT = 2**31 - 1  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of freed memory; whether the C library could be told (glibc only)."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, KEPT))
