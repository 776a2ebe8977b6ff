"""Each kind of stored object, damaged: nobody loads it, and whoever needs it says which one it is."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import synthetic
from live_server import ReplicaByHand

from pipeline import (
    aliases,
    checkpoints,
    dataset_versions,
    datasets,
    evaluate,
    export,
    index_segments,
    proof,
    registry,
    train,
    training_runs,
)
from pipeline.artifacts import DatasetVersion, GateConfig, ModelVersion, PrepareConfig, TrainConfig, TrainingRun
from pipeline.errors import SafelightError
from pipeline.prepare import prepare
from pipeline.promote import promote
from pipeline.settings import ZONES
from pipeline.verification import verify
from pipeline.zones import Zones

NAME = "pets"
SEED = 20261122
Objects = dict[tuple[str, str], bytes]


@dataclass(frozen=True)
class Made:
    """All objects of a route that was gone twice, and what it made the first time."""

    objects: Objects
    dataset: DatasetVersion
    run: TrainingRun
    model: ModelVersion
    other: ModelVersion


@pytest.fixture(scope="module")
def made() -> Made:
    """Two dataset versions, two training runs, two model versions; the first one is the champion."""
    zones = synthetic.memory_zones()
    results = []
    for start in (0, 60):
        synthetic.put_classes(zones, NAME, 20, start=start)
        version = prepare(zones, NAME, PrepareConfig(size=12, test_share=0.3)).version
        run = train.train(zones, version, TrainConfig(epochs=2, batch_size=8), device="cpu")
        files, judged = export.export(zones, run), evaluate.evaluate(zones, run, device="cpu")
        model = registry.register(zones.checkpoints, zones.models, NAME, files, judged)
        results.append((version, run, model))
    (version, run, model), (_, _, other) = results
    for alias, each in ((aliases.CHAMPION, model), ("challenger", other)):
        aliases.set_alias(zones.models, NAME, alias, each.version, reason="first")
    return Made(contents(zones), version, run, model, other)


def contents(zones: Zones) -> Objects:
    """Every object of all zones."""
    stores = {zone: getattr(zones, zone) for zone in ZONES}
    return {(zone, each.key): store.get(each.key) for zone, store in stores.items() for each in store.listing()}


def restored(objects: Objects) -> Zones:
    """Zones that hold just these objects."""
    zones = synthetic.memory_zones()
    for (zone, key), data in objects.items():
        getattr(zones, zone).put(key, data)
    return zones


def load(zones: Zones, made: Made) -> None:
    """What training reads."""
    version = datasets.find(zones.datasets, NAME, made.dataset.version)
    for split in ("train", "validation", "test"):
        datasets.load_split(zones.datasets, version, split)


def resume(zones: Zones, made: Made) -> None:
    """A finished training run, found again, and its weights."""
    run = train.train(zones, made.dataset, made.run.config, device="cpu")
    checkpoints.load_weights(zones.checkpoints, run)


def find_newest_run(zones: Zones, _made: Made) -> None:
    """The newest run of a dataset, as commands look for it."""
    training_runs.latest(zones.checkpoints, NAME)


def register(zones: Zones, made: Made) -> None:
    """Another model of the same run."""
    files, judged = export.export(zones, made.run), evaluate.evaluate(zones, made.run, device="cpu")
    registry.register(zones.checkpoints, zones.models, "copy", files, judged)


def judge(zones: Zones, made: Made) -> None:
    """The champion is loaded and asked."""
    promote(zones, made.other, GateConfig(minimum_accuracy=0, margin=-1, allow=("seen_test_images",)))


def judge_challenger(zones: Zones, made: Made) -> None:
    """The first version as a challenger of the second one."""
    aliases.set_alias(zones.models, NAME, aliases.CHAMPION, made.other.version, reason="the other way round")
    promote(zones, made.model, GateConfig(minimum_accuracy=0, margin=-1, allow=("seen_test_images",)))


def serve(zones: Zones, _made: Made) -> None:
    """The inference server looks at its alias."""
    replica = ReplicaByHand(zones.models, model=NAME)
    replica.look()
    if replica.version is None:
        assert replica.error is not None
        raise SafelightError(replica.error.reason)


def ask(zones: Zones, made: Made) -> None:
    """The images and answers by which a deployment is proven."""
    proof.smoke_set(zones, registry.read_manifest(zones.models, NAME, made.model.version))


def read_file(name: str) -> Callable[[Zones, Made], None]:
    """A reader of one file of the model version."""

    def read(zones: Zones, made: Made) -> None:
        registry.load_file(zones.models, registry.read_manifest(zones.models, NAME, made.model.version), name)

    return read


RUN = r"{run}"
KINDS: dict[str, tuple[str, str, list[Callable[[Zones, Made], None]]]] = {
    "shard": ("datasets", r"pets/shards/.*", [load]),
    "index segment": ("datasets", r"pets/index/.*", [load]),
    "dataset manifest": ("datasets", r"pets/{dataset}/manifest\.json", [load]),
    "checkpoint": ("checkpoints", r"{checkpoint}", [resume]),
    "checkpoint's tensors": ("checkpoints", r"{tensors}", [resume]),
    "result": ("checkpoints", r"{run}/result\.json", [resume, find_newest_run]),
    "evaluation": ("checkpoints", r"{run}/evaluation/evaluation\.json", [register]),
    "report": ("checkpoints", r"{run}/evaluation/report\.html", [register]),
    "predictions": ("checkpoints", r"{run}/evaluation/predictions\.parquet", [register]),
    "export": ("checkpoints", r"{run}/export/export\.json", [register]),
    "exported model": ("checkpoints", r"{run}/export/model\.onnx", [register]),
    "exported weights": ("checkpoints", r"{run}/export/model\.safetensors", [register]),
    "model manifest": ("models", r"pets/{model}/manifest\.json", [judge, serve, ask]),
    "model": ("models", r"pets/{model}/model\.onnx", [judge, serve]),
    "weights": ("models", r"pets/{model}/model\.safetensors", [read_file("model.safetensors")]),
    "model's report": ("models", r"pets/{model}/report\.html", [read_file("report.html")]),
    "model's evaluation": ("models", r"pets/{model}/evaluation\.json", [read_file("evaluation.json")]),
    "model's predictions": ("models", r"pets/{model}/predictions\.parquet", [judge_challenger, ask]),
    "alias": ("models", r"pets/aliases/champion\.json", [judge, serve]),
}
ANOTHER = {"run": r"[0-9a-f]{16}", "dataset": r"[0-9a-f]{16}", "model": registry.VERSION_ID.pattern}


def keys_of(kind: str, made: Made) -> tuple[str, list[str], str]:
    """Zone and keys of the objects of a kind that belong to what was made first, and the key of a sibling."""
    zone, pattern, _ = KINDS[kind]
    folder = re.escape(made.run.checkpoint.rpartition("/")[0])
    own = {"run": made.run.id, "dataset": made.dataset.version, "model": made.model.version}
    own |= {"checkpoint": f"{folder}/checkpoint.json", "tensors": f"{folder}/state.safetensors"}
    others = ANOTHER | {"checkpoint": r".*/checkpoint\.json", "tensors": r".*/state\.safetensors"}
    keys = [key for at, key in made.objects if at == zone]
    mine = [key for key in keys if re.fullmatch(_filled(pattern, own), key)]
    if kind in {"shard", "index segment"}:
        mine = [key for key in mine if (zone, key) in needed(made)]
    wider = _filled(pattern, others).replace("champion", "challenger")
    return zone, mine, next(key for key in keys if re.fullmatch(wider, key) and key not in mine[:1])


def needed(made: Made) -> set[tuple[str, str]]:
    """Shards and index segments of the first dataset version."""
    zones = restored(made.objects)
    manifest = dataset_versions.read_manifest(zones.datasets, NAME, made.dataset.version)
    rows = index_segments.read(zones.datasets, NAME, manifest.segments)
    shards = {f"{NAME}/shards/{name.hex()}.safetensors" for name in rows["shard"].unique().to_pylist() if name}
    index = {f"{NAME}/index/{segment.sha256}.parquet" for segment in manifest.segments}
    return {("datasets", key) for key in shards | index}


def _filled(pattern: str, parts: dict[str, str]) -> str:
    for name, part in parts.items():
        pattern = pattern.replace("{" + name + "}", part)
    return pattern


def flipped(data: bytes, chance: random.Random) -> bytes:
    """One bit of one byte is another."""
    position = chance.randrange(len(data))
    return data[:position] + bytes([data[position] ^ 1 << chance.randrange(8)]) + data[position + 1 :]


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end is lost."""
    return data[: chance.randrange(len(data))]


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "its sibling's bytes", "gone"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_object_is_never_loaded(made: Made, kind: str, damage: str) -> None:
    """Every reader refuses it by name, and so does the verification of the store."""
    chance = random.Random(f"{SEED} {kind} {damage}")
    zone, mine, sibling = keys_of(kind, made)
    assert mine
    key = chance.choice(mine)
    data = made.objects[zone, key]
    for _ in range(4 if damage == "a flipped bit" else 1):
        damaged = {
            "a flipped bit": flipped(data, chance),
            "cut short": cut(data, chance),
            "its sibling's bytes": made.objects[zone, sibling],
        }
        objects = {place: held for place, held in made.objects.items() if place != (zone, key)}
        objects |= {(zone, key): damaged[damage]} if damage in damaged else {}
        assert objects.get((zone, key)) != data
        for reader in KINDS[kind][2]:
            refuses(reader, objects, made, key, gone=damage == "gone")
        found = verify(restored(objects)).broken
        whole = damage == "gone" and kind in SEEN_AS_UNFINISHED
        assert any(named(key, made, f"{each.address} {each.fault}") for each in found) is not whole, found


SEEN_AS_UNFINISHED = {"dataset manifest", "result", "evaluation", "export", "alias"}
"""Without it, what is left looks like work that is not finished yet."""


def refuses(reader: Callable[[Zones, Made], None], objects: Objects, made: Made, key: str, *, gone: bool) -> None:
    """The reader ends with a sentence that names the object, or, where it is gone, makes it anew or says so."""
    zones = restored(objects)
    try:
        reader(zones, made)
    except SafelightError as error:
        assert named(key, made, str(error)), f"{reader.__name__}: {error}"  # noqa: PT017 - or gone
    else:
        assert gone, f"{reader.__name__} took it"


def named(key: str, made: Made, sentence: str) -> bool:
    """Whether a sentence says which object it is about: by its key, its folder, its version, or its alias."""
    names = (key, key.rpartition("/")[0], made.model.version, made.dataset.version, "alias 'champion'")
    return any(name in sentence for name in names)


@pytest.mark.parametrize("damage", [flipped, cut])
def test_a_damaged_pointer_is_passed_over(
    made: Made, damage: Callable[[bytes, random.Random], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a readable pointer the next preparation starts anew, says why, and ends with the same version."""
    place = ("datasets", f"{NAME}/latest.json")
    zones = restored(made.objects | {place: damage(made.objects[place], random.Random(SEED))})
    assert any("latest.json" in each.address for each in verify(zones).broken)
    wanted = datasets.latest(restored(made.objects).datasets, NAME)
    assert prepare(zones, NAME, PrepareConfig(size=12, test_share=0.3)).version == wanted
    assert "latest.json is not used: it was altered" in caplog.text
    assert not verify(zones).broken


def test_a_damaged_local_copy_is_fetched_anew(made: Made, tmp_path: Path) -> None:
    """An index segment that was altered on this machine is read from the store again."""
    zones = restored(made.objects)
    segments = datasets.read_manifest(zones.datasets, NAME, made.dataset.version).segments
    rows = index_segments.read(zones.datasets, NAME, segments, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(flipped(path.read_bytes(), random.Random(SEED)))
    assert index_segments.read(zones.datasets, NAME, segments, tmp_path).equals(rows)
