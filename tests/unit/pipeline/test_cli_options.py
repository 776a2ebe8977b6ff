"""What the commands make of options about canaries."""

import pytest
from pydantic import ValidationError

from pipeline.artifacts import CanaryConfig
from pipeline.cli_options import canary_config
from pipeline.errors import InvalidInput


def test_without_canary_there_is_none() -> None:
    """Options that were not given say nothing."""
    assert canary_config(by_canary=False, steps=(), minimum_requests=None, real_traffic=False) is None
    assert canary_config(by_canary=True, steps=(), minimum_requests=None, real_traffic=False) == CanaryConfig()


def test_options_reach_the_ramp() -> None:
    """Those that are given do, a time of zero included."""
    found = canary_config(by_canary=True, steps=(0.2, 0.5), minimum_requests=50, real_traffic=True, step_s=0.0)
    assert found == CanaryConfig(steps=(0.2, 0.5), minimum_requests=50, real_traffic=True, step_s=0)


def test_options_without_a_canary_are_refused() -> None:
    """Who forgets the canary does not get a deployment at once instead."""
    with pytest.raises(InvalidInput, match="minimum_requests, steps: only a canary has steps; give --canary too"):
        canary_config(by_canary=False, steps=(0.2,), minimum_requests=5)


@pytest.mark.parametrize("steps", [(0.5, 0.1), (0.1, 0.1), (0.0, 0.5), (0.5, 1.0)])
def test_steps_that_do_not_ascend_are_refused(steps: tuple[float, ...]) -> None:
    """Shares grow, from more than nothing to less than all."""
    with pytest.raises(ValidationError, match="steps"):
        canary_config(by_canary=True, steps=steps)
