"""Batch predictions as tests make and read them: a tiny champion, some images, all rows of a batch."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tiny_models

from pipeline import aliases, images, predict
from pipeline.artifacts import ModelVersion
from pipeline.predict import BatchResult
from pipeline.store import Store
from pipeline.zones import Zones

MODEL = "shapes"
FOLDER = "incoming/today"


def champion(zones: Zones, seed: int = 1, **options: Any) -> ModelVersion:
    """A version that is the champion from now on."""
    version = tiny_models.register(zones.checkpoints, zones.models, MODEL, seed, **options)
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, version.version, reason="test")
    return version


def put(zones: Zones, numbers: Iterable[int], folder: str = FOLDER) -> None:
    """Put pictures, several at a time."""
    named = ((f"{folder}/{number:05d}.png", images.encode_png(tiny_models.picture(number))) for number in numbers)
    for _ in zones.images.write_many(named):
        pass


def predicted(zones: Zones, folder: str = FOLDER, **options: Any) -> BatchResult:
    """A batch prediction by the tiny model."""
    return predict.predict(zones, MODEL, folder, **options)


def rows(predictions: Store, result: BatchResult) -> list[dict[str, Any]]:
    """All rows of a batch, in the order of its files."""
    tables = []
    for part in result.manifest.parts:
        with pq.ParquetFile(pa.BufferReader(predictions.get_verified(part.key, part.sha256))) as file:
            tables.append(file.read(use_threads=False).replace_schema_metadata(None))
    return pa.concat_tables(tables).to_pylist()


def keys(zones: Zones) -> list[str]:
    """All keys of the predictions zone, sorted."""
    return sorted(each.key for each in zones.predictions.listing())
