"""What a Dask cluster must have in common with a client, and what is said where there is none."""

import socket
from typing import Any

import pytest

from pipeline import dask_cluster
from pipeline.errors import InvalidSettings, WorkersUnavailable

OURS = {
    "python": "3.11.2.final.0",
    "dask": "2026.8.0",
    "distributed": "2026.8.0",
    "cloudpickle": "3.1",
    "msgpack": "1.1",
}


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def told(**other: str) -> dict[str, Any]:
    """What a process says of its versions."""
    return {"packages": OURS | other}


@pytest.mark.parametrize("other", [{}, {"python": "3.11.9.final.0"}, {"numpy": "1.0"}])
def test_versions_that_understand_each_other(other: dict[str, str]) -> None:
    """Another patch of Python, and another numpy, do no harm."""
    assert dask_cluster.mismatch(told(), {"tcp://worker": told(**other)}) is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"python": "3.12.1.final.0"}, "python is 3.12 on tcp://worker and 3.11 here"),
        ({"distributed": "2025.1.0"}, "distributed is 2025.1.0 on tcp://worker and 2026.8.0 here"),
    ],
)
def test_versions_that_do_not_are_named(other: dict[str, str], said: str) -> None:
    """The first difference is said with both versions and where it is."""
    assert dask_cluster.mismatch(told(), {"tcp://other": told(), "tcp://worker": told(**other)}) == said


def test_a_scheduler_that_is_not_there_is_a_sentence(unused_port: int) -> None:
    """Nobody listening is one sentence with the address, after the patience."""
    address = f"tcp://127.0.0.1:{unused_port}"
    with (
        pytest.raises(WorkersUnavailable, match=f"No Dask scheduler answered at {address} for 1 s"),
        dask_cluster.reached(address, dask_cluster.Client, patience_s=1),
    ):
        pass


def test_tls_without_certificates_is_a_sentence(unused_port: int) -> None:
    """It is said which variables are missing."""
    with (
        pytest.raises(InvalidSettings, match="needs certificates: set DASK_DISTRIBUTED__COMM__TLS__CA_FILE"),
        dask_cluster.reached(f"tls://127.0.0.1:{unused_port}", dask_cluster.Client, patience_s=1),
    ):
        pass
