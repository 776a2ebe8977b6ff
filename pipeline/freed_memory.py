"""Giving freed memory back to the operating system, where glibc would keep it for later.

glibc keeps what lies between blocks that are still in use, in each thread's arena, and larger and larger blocks as
larger ones are freed. Others give back by themselves. Training wants the opposite (``learner``).
"""

import ctypes
import platform

MAPPED_BYTES = 1 << 20
"""Blocks above this are mapped, and unmapped when they are freed; a shard is above it, most images are below."""
KEPT_BYTES = 1 << 20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's ``malloc.h``."""


def keep_little() -> None:
    """From now on keep little of what is freed, in this process."""
    if _is_glibc():
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def give_back() -> None:
    """Give back what is free now; it takes about a millisecond."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
