"""How this process treats memory that it has freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress

KEPT_BYTES = 1 << 30

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Keep up to a gigabyte of what is freed for what is allocated next; nothing where malloc is not glibc's.

    Each batch of a model allocates and frees tens to hundreds of MB. glibc gives those back to the kernel each time, and getting them
    again, page by page, cost 6 % of embedding on two cores.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
