"""Every stage of the route under SIGKILL: a short form, and the long one by ``make soak`` (SAFELIGHT_SOAK_KILLS)."""

import os
import random
import time
from pathlib import Path

import pytest
from soak import STAGES, run, soaking

from pipeline.settings import Settings
from pipeline.zones import Zones

KILLS = int(os.environ.get("SAFELIGHT_SOAK_KILLS", "20"))


@pytest.mark.timeout(900 + 60 * KILLS)
def test_nothing_is_lost_whatever_is_killed(zones: Zones, zone_settings: Settings, tmp_path: Path) -> None:
    """After each kill all that is complete is whole, and a route gone to its end is that of an undisturbed one."""
    seed = int(os.environ.get("SAFELIGHT_SOAK_SEED", random.SystemRandom().randrange(2**32)))
    print(f"soak: seed {seed}, until {KILLS} kills", flush=True)  # noqa: T201 - to repeat a failure
    began = time.monotonic()
    settings = zone_settings.model_copy(update={"home": tmp_path / "home"})
    with soaking(settings, zones, tmp_path / "images", seed) as soak:
        run(soak, KILLS)
    told = ", ".join(f"{stage} {soak.kills[stage]}" for stage in (*STAGES, "run"))
    how = ", ".join(f"{kind} {count}" for kind, count in sorted(soak.kinds.items()))
    print(  # noqa: T201 - what a soak is made for
        f"soak: seed {seed}, {soak.total} kills ({told}; {how}) in {soak.round} rounds and "
        f"{time.monotonic() - began:.0f} s, {len(soak.kept):,} objects, losses: 0",
        flush=True,
    )
    assert soak.total >= KILLS
    assert all(soak.kills[stage] for stage in (*STAGES, "run"))
