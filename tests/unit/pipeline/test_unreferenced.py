"""What is referred to is never garbage, whatever lies around it, and what is not is garbage in time."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from pipeline import unreferenced
from pipeline.store import StoredObject
from pipeline.unreferenced import Garbage, Limits

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NAMES = [f"{number:064x}" for number in range(6)]
RUN = "0123456789abcdef"
VERSION = "20261122T010203Z-0123abcd"
AGES = st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(days=2), timedelta(days=40)])
LIMITS = st.builds(
    Limits,
    older_than=st.sampled_from([timedelta(0), timedelta(hours=24)]),
    abandoned=st.sampled_from([None, timedelta(days=7)]),
)


def stored(key: str, age: timedelta) -> StoredObject:
    """A line of a listing."""
    return StoredObject(key, 10, "etag", NOW - age)


def listings(*patterns: str) -> st.SearchStrategy[list[StoredObject]]:
    """Listings of keys of these forms, of any ages."""
    keys = st.one_of(*(st.from_regex(re.compile(pattern), fullmatch=True) for pattern in patterns))
    return st.lists(st.builds(stored, keys, AGES), unique_by=lambda each: each.key, max_size=30)


def keys_of(found: Sequence[Garbage]) -> set[str]:
    """The keys that are garbage."""
    return {each.key for each in found}


PARTS = rf"cats/(shards/({'|'.join(NAMES)})\.safetensors|index/({'|'.join(NAMES)})\.parquet)"
OTHERS = r"cats/([0-9a-f]{16}/manifest\.json|latest\.json|lease\.json|preparing\.json|[a-z]{1,5}(/[a-z]{1,5})?)"
WORK = r"cats/work/28x28-crop-1/[0-9a-f]{4}"
LISTS = r"cats/quarantine/[0-9a-f]{16}\.jsonl"


@given(listings(PARTS, OTHERS, WORK, LISTS), st.sets(st.sampled_from(NAMES)), LIMITS)
def test_a_dataset_loses_nothing_that_a_version_names(
    listing: list[StoredObject], named: set[str], limits: Limits
) -> None:
    """Only unnamed parts, unfinished work, old lists and left leases are garbage, past their limits; all such are."""
    keys = {f"cats/shards/{name}.safetensors" for name in named} | {f"cats/index/{name}.parquet" for name in named}
    found = keys_of(unreferenced.dataset_garbage(listing, keys, NOW, limits))
    ages = {each.key: NOW - each.modified for each in listing}
    preparing = any(re.fullmatch(WORK, key) and age <= limits.older_than for key, age in ages.items())
    for key, age in ages.items():
        part = re.fullmatch(PARTS, key) and key not in keys
        expected = (part or re.fullmatch(WORK, key)) and age > limits.older_than and not preparing
        expected = expected or (re.fullmatch(LISTS, key) and age > limits.quarantine)
        expected = expected or (key == "cats/preparing.json" and age > limits.older_than)
        assert (key in found) is bool(expected), key


CHECKPOINTS = rf"{RUN}/checkpoints/00000[12]-00000000[123]/(checkpoint\.json|state\.safetensors)"
OF_A_RUN = rf"{RUN}/(lease\.json|result\.json|evaluation/report\.html|export/model\.onnx|[a-z]{{1,4}}/[a-z])"
BEST = f"{RUN}/checkpoints/000002-000000002/checkpoint.json"


@given(listings(CHECKPOINTS, OF_A_RUN), LIMITS)
def test_a_finished_run_keeps_its_best_checkpoint(listing: list[StoredObject], limits: Limits) -> None:
    """Old checkpoints but the best go, and the lease; result, evaluation, export and what is unknown stay."""
    found = keys_of(unreferenced.run_garbage(listing, BEST, NOW, limits))
    for each in listing:
        best = each.key.startswith(BEST.removesuffix("checkpoint.json"))
        goes = re.fullmatch(CHECKPOINTS, each.key) is not None and not best
        goes = goes or each.key == f"{RUN}/lease.json"
        assert (each.key in found) is (goes and NOW - each.modified > limits.older_than), each.key


@given(listings(CHECKPOINTS, OF_A_RUN), LIMITS)
def test_an_unfinished_run_goes_as_a_whole_or_not_at_all(listing: list[StoredObject], limits: Limits) -> None:
    """Without a limit for abandoned runs nothing goes; with one all checkpoints, once the newest is old enough."""
    found = keys_of(unreferenced.run_garbage(listing, None, NOW, limits))
    parts = {each for each in listing if re.fullmatch(rf"{RUN}/(checkpoints|evaluation|export)/.*", each.key)}
    if limits.abandoned is None or any(NOW - each.modified <= limits.abandoned for each in parts):
        assert not found
    else:
        assert found == {each.key for each in listing if each in parts or each.key == f"{RUN}/lease.json"}


@given(
    listings(
        rf"pets/({VERSION}|20261122T010203Z-ffffffff)/(manifest\.json|model\.onnx|report\.html|deployment\.json)",
        r"pets/(lease\.json|deploying\.json|aliases/[a-z]{1,4}\.json|[a-z]{1,4}/model\.onnx)",
    ),
    st.sampled_from([set(), {VERSION}]),
    LIMITS,
)
def test_a_version_with_manifest_or_alias_keeps_all_files(
    listing: list[StoredObject], live: set[str], limits: Limits
) -> None:
    """Files of a version go only where no manifest or alias has it and none is young; so does a lease that was left."""
    found = keys_of(unreferenced.model_garbage(listing, live, NOW, limits))
    for each in listing:
        version = each.key.split("/")[1]
        files = [other for other in listing if other.key.startswith(f"pets/{version}/")]
        complete = any(other.key.endswith("/manifest.json") for other in files)
        young = any(NOW - other.modified <= limits.older_than for other in files)
        half = version in {VERSION, "20261122T010203Z-ffffffff"} and not (complete or young or version in live)
        left = each.key == "pets/deploying.json" and NOW - each.modified > limits.older_than
        assert (each.key in found) is (half or left), each.key


def test_days_of_predictions_are_kept_for_as_long_as_said() -> None:
    """A day goes when all of it is older; what is not named after a day, and everything without a limit, stays."""
    folders = [f"date={day}" for day in ("2026-11-14", "2026-11-15", "2026-11-22", "2027-01-01", "2026-02-30")]
    folders += ["notes", "2026-01-01"]
    week = Limits(predictions=timedelta(days=7))
    assert unreferenced.days_of_predictions(folders, NOW, week) == ["date=2026-11-14"]
    assert unreferenced.days_of_predictions(folders, NOW, Limits()) == []


MADE = r"_batch/cats/monday/(part-0000[0-9]\.parquet|manifest\.json)"
MEANWHILE = r"_batch/cats/_work/monday/(plan\.json|lease\.json|listing/[0-9a-f]{64}\.parquet)"


@given(listings(MADE), listings(MEANWHILE), LIMITS)
def test_a_complete_batch_stays_and_an_unfinished_one_goes_as_a_whole(
    made: list[StoredObject], work: list[StoredObject], limits: Limits
) -> None:
    """With a manifest no answer is garbage; without one all is, or nothing, by its youngest but the lease."""
    found = keys_of(unreferenced.batch_garbage(made, work, NOW, limits))
    complete = any(each.key.endswith("manifest.json") for each in made)
    considered = {each.key: NOW - each.modified for each in (work if complete else [*made, *work])}
    young = any(age <= limits.older_than for key, age in considered.items() if not key.endswith("lease.json"))
    assert found == (set() if young else considered.keys())
    assert not (complete and found & keys_of_listing(made))


def keys_of_listing(listing: Sequence[StoredObject]) -> set[str]:
    """The keys of a listing."""
    return {each.key for each in listing}
