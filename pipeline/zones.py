"""The five zones of the object store, opened: buckets created where they are ours, promises of the store proven.

Called by composition roots (CLI, flows, demo, tests) alone; steps get the opened ``Zones`` as an argument.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from pydantic import SecretStr

from pipeline import buckets, embedded_store, store_check
from pipeline.patience import Patience
from pipeline.settings import ZONES, Settings, Zone
from pipeline.store import Store, open_store, patience_with

READ_BACK_ZONES: tuple[Zone, ...] = ("datasets", "checkpoints", "models")
"""The zones in which conditional writes decide who won."""


@dataclass(frozen=True, slots=True)
class Zones:
    """The opened zones; keys are relative to each."""

    images: Store
    datasets: Store
    checkpoints: Store
    models: Store
    predictions: Store


def open_zones(settings: Settings) -> Zones:
    """All zones, ready to be used.

    Raises:
        InvalidSettings: a URL is wrong, or the store does not keep its promises.
        StoreError: the store cannot be reached, or refuses the credentials.
    """
    settings = reachable(settings)
    patience = patience_with(settings)
    _create_own_buckets(settings, patience)
    zones = Zones(**{zone: open_store(settings.zone_url(zone), settings, patience) for zone in ZONES})
    with ThreadPoolExecutor(len(READ_BACK_ZONES)) as pool:
        list(pool.map(store_check.refuse_unless_proven, (getattr(zones, zone) for zone in READ_BACK_ZONES)))
    return zones


def reachable(settings: Settings) -> Settings:
    """``settings`` with an endpoint: the embedded store is started, or found, where no other one is named."""
    if not settings.uses_embedded_store:
        return settings
    connection = embedded_store.up(settings.home, settings.store_port)
    return settings.model_copy(
        update={
            "s3_endpoint": connection.endpoint,
            "s3_access_key_id": SecretStr(connection.access_key_id),
            "s3_secret_access_key": SecretStr(connection.secret_access_key),
            "s3_region": connection.region,
        }
    )


def _create_own_buckets(settings: Settings, patience: Patience) -> None:
    """Create the buckets that bear our own names; a bucket that a person named is theirs to create."""
    own = [urlsplit(url).netloc for zone in ZONES if (url := settings.zone_url(zone)) == f"s3://safelight-{zone}"]
    if own and settings.s3_endpoint and settings.s3_access_key_id and settings.s3_secret_access_key:
        create = partial(
            buckets.create_buckets,
            settings.s3_endpoint,
            settings.s3_access_key_id.get_secret_value(),
            settings.s3_secret_access_key.get_secret_value(),
            settings.s3_region,
            own,
        )
        patience(create, f"looking for the buckets at {settings.s3_endpoint}")
