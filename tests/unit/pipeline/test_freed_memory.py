"""Freed memory is the operating system's again."""

import platform

import psutil
import pytest

from pipeline import freed_memory

MIB = 1 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back by themselves")
def test_what_is_freed_is_given_back() -> None:
    """Of many small pieces that are freed below one that stays, next to nothing is kept."""
    process = psutil.Process()
    pieces = [b"x" * (1 << 16) for _ in range(3200)]
    last = b"x" * (1 << 16)
    held = process.memory_info().rss
    del pieces
    freed_memory.keep_little()
    freed_memory.give_back()
    assert held - process.memory_info().rss > 150 * MIB
    assert len(last) == 1 << 16
