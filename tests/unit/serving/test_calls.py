import re

import pytest

from pipeline.errors import InvalidInput
from serving.calls import call_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01".encode()


def test_the_clients_own_id_is_kept() -> None:
    """It wins over a trace's."""
    call = call_of([(b"traceparent", PARENT), (b"x-request-id", b"order-17/3")], 1.0)
    assert call.request_id == "order-17/3"


@pytest.mark.parametrize("odd", [b"", b"a b", b"a\tb", b"\xff", b"x" * 129, b'"quoted"', b"a\x00"])
def test_an_odd_id_is_not_taken_over(odd: bytes) -> None:
    """What would not be safe in a log or a header is replaced by a random one."""
    assert re.fullmatch("[0-9a-f]{32}", call_of([(b"x-request-id", odd)], 1.0).request_id)


def test_ids_differ() -> None:
    """No two requests share one that was made up."""
    assert len({call_of([], 1.0).request_id for _ in range(1000)}) == 1000


def test_a_trace_goes_on() -> None:
    """The trace id names the request, and the answer continues the trace with a span of its own and the same flags."""
    call = call_of([(b"traceparent", PARENT)], 1.0)
    assert call.request_id == TRACE
    assert call.traceparent
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", call.traceparent)
    assert call.traceparent.encode() != PARENT


@pytest.mark.parametrize(
    "odd", [b"", b"00-" + b"0" * 32 + PARENT[35:], PARENT.upper(), PARENT + b"-x", b"ff" + PARENT[2:]]
)
def test_an_odd_trace_is_passed_over(odd: bytes) -> None:
    """What W3C's format does not allow is no trace."""
    call = call_of([(b"traceparent", odd)], 1.0)
    assert call.traceparent is None
    assert call.request_id != TRACE


def test_the_earliest_deadline_counts() -> None:
    """The client's, or the proxy's."""
    headers = [(b"x-request-timeout-ms", b"250"), (b"x-envoy-expected-rq-timeout-ms", b"100")]
    assert call_of(headers, 7.0).deadline == pytest.approx(7.1)
    assert call_of([], 7.0).deadline is None


@pytest.mark.parametrize("odd", [b"", b"soon", b"-1", b"1.5", b"9" * 12])
def test_an_odd_deadline_is_the_clients_mistake(odd: bytes) -> None:
    """It is named."""
    with pytest.raises(InvalidInput, match=r"^x-request-timeout-ms: '.*' is not a number of milliseconds"):
        call_of([(b"x-request-timeout-ms", odd)], 1.0)


def test_a_canary_sticks_to_the_caller() -> None:
    """Its own key, else its API key's name, else the request."""
    assert call_of([(b"x-caller-key", b"user-9")], 1.0, key="shop").caller == "user-9"
    assert call_of([], 1.0, key="shop").caller == "shop"
    alone = call_of([], 1.0)
    assert alone.caller == alone.request_id
