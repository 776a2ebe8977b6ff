import os
from pathlib import Path

import pytest

from serving import cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, None),
        ({"cpu.max": "something else\n"}, None),
        ({}, None),
    ],
)
def test_a_limit_of_the_container_counts(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    """Both versions of control groups are understood; without a limit, or with a wide one, all cores are used."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    everything = cores.of_this_machine(tmp_path / "nothing")
    assert 1 <= everything <= (os.cpu_count() or 1)
    assert cores.of_this_machine(tmp_path) == (limit or everything)


def test_each_process_gets_its_share() -> None:
    """Cores are divided among processes, and each has one at least."""
    assert [cores.share(8, processes) for processes in (1, 3, 8, 9)] == [8, 2, 1, 1]
