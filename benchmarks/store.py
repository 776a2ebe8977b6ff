"""Small objects read and written per second: ``python -m benchmarks.store [--objects N] [--rounds N]``.

An embedded store of the benchmark's own holds small PNGs. All contenders take turns:

- **GET**: ``Store.read_many`` in one process, and in two that read one half each; the minio SDK in 32 threads; and
  wrk with 32 connections, which is the limit. It is run with presigned URLs and with the very headers that the product
  sends: a presigned URL costs the store 40 % more instructions, so that the latter is the stricter measure.
- **PUT**: ``Store.write_many`` and the minio SDK in 32 threads, always under new keys. The product sends a SHA-256 that
  the store checks, the SDK does not.

Store and clients share the machine. Beside objects per second stands the CPU time that both took per object: where
all cores are busy it decides the other figure, and other programs on the machine disturb it less.
"""

import argparse
import io
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise

import psutil
import urllib3
from minio import Minio

from benchmarks import wrk
from benchmarks.own_store import answer_of, credentials, endpoint, own_store, rounds, small_png, table
from pipeline import embedded_store, processes
from pipeline.settings import Settings
from pipeline.store import Store, StoredObject, open_store
from pipeline.zones import open_zones

OBJECTS = 5_000
ROUNDS = 5
BUCKET = "safelight-images"
FOLDER = "small"
SDK_THREADS = 32
SDK = f"minio SDK, {SDK_THREADS} threads"
WRK = f"wrk, {wrk.CONNECTIONS} connections, the product's headers"
WRK_PRESIGNED = f"wrk, {wrk.CONNECTIONS} connections, presigned URLs"

Contenders = dict[str, Callable[[], int]]


def main() -> None:
    """Print the tables; or be a process that reads its share whenever a line comes in."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--objects", type=int, default=OBJECTS, help="how many are read, and written, in a turn")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often the contenders take turns")
    parser.add_argument("--share", nargs=2, type=int, metavar=("FIRST", "END"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share:
        read_when_told(open_store(f"s3://{BUCKET}", Settings.from_environ(os.environ)), *options.share)
        return
    with own_store() as settings:
        images = open_zones(settings).images
        bodies = [small_png(number) for number in range(options.objects)]
        put(images, bodies, FOLDER)
        print(f"{len(bodies):,} objects of {sum(map(len, bodies)) / len(bodies):.0f} bytes, {options.rounds} rounds")
        measure_gets(settings, [found.key for found in images.listing(FOLDER)], options.rounds)
        measure_puts(settings, images, bodies, options.rounds)


def measure_gets(settings: Settings, keys: Sequence[str], turns: int) -> None:
    """Print the tables of GETs."""
    with ExitStack() as stack:
        contenders = wrks(settings, keys)
        for count in (1, 2):
            name = f"Store.read_many, {count} process{'es' if count > 1 else ''}"
            contenders[name] = stack.enter_context(readers(settings, len(keys), count))
        contenders[SDK] = partial(in_threads, partial(got, client(settings)), keys)
        compare(settings, "GET", contenders, turns, [name for name in contenders if "wrk" in name] or [SDK])


def wrks(settings: Settings, keys: Sequence[str]) -> Contenders:
    """The contenders that wrk runs, if it is there."""
    if not shutil.which("wrk"):
        print("wrk is not installed (apt-get install wrk, brew install wrk): the limit is missing here.")
        return {}
    own = wrk.write_script(settings.home / "signed.lua", wrk.signed(settings, BUCKET, keys))
    urls = wrk.write_script(settings.home / "presigned.lua", wrk.presigned(client(settings), BUCKET, keys))
    return {WRK: partial(wrk.answered, settings, own), WRK_PRESIGNED: partial(wrk.answered, settings, urls)}


def measure_puts(settings: Settings, images: Store, bodies: Sequence[bytes], turns: int) -> None:
    """Print the tables of PUTs."""
    contenders: Contenders = {
        "Store.write_many": partial(put, images, bodies),
        SDK: partial(put_by_sdk, client(settings), bodies),
    }
    compare(settings, "PUT", contenders, turns, [SDK])


def compare(settings: Settings, what: str, contenders: Contenders, turns: int, references: Sequence[str]) -> None:
    """Let the contenders take turns; print objects per second and CPU time, relative to each reference."""
    store = processes.find(settings.home, embedded_store.NAME)
    pids = [os.getpid(), *([store.pid] if store else [])]
    taken = rounds({name: partial(sampled, work, pids) for name, work in contenders.items()}, turns)
    per_second = {name: [rate for rate, _ in samples] for name, samples in taken.items()}
    per_cpu_second = {name: [rate for _, rate in samples] for name, samples in taken.items()}
    for reference in references:
        table(f"{what} per second", per_second, reference)
        table(f"{what} per second of CPU time", per_cpu_second, reference)


def sampled(work: Callable[[], int], pids: Sequence[int]) -> tuple[float, float]:
    """Objects per second, and per second of CPU time of these processes and their children."""
    used, began = cpu_seconds(pids), time.perf_counter()
    done = work()
    return done / (time.perf_counter() - began), done / (cpu_seconds(pids) - used)


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time so far, that of living and of ended children included."""
    own = [psutil.Process(pid) for pid in pids]
    return sum(sum(process.cpu_times()[:4]) for top in own for process in (top, *top.children(recursive=True)))


def put(images: Store, bodies: Sequence[bytes], folder: str | None = None) -> int:
    """How many objects the product wrote."""
    folder = folder or secrets.token_hex(4)
    return sum(1 for _ in images.write_many((f"{folder}/{number:06d}", body) for number, body in enumerate(bodies)))


def put_by_sdk(sdk: Minio, bodies: Sequence[bytes]) -> int:
    """How many objects the SDK wrote."""
    folder = secrets.token_hex(4)

    def write(item: tuple[int, bytes]) -> None:
        sdk.put_object(BUCKET, f"{folder}/{item[0]:06d}", io.BytesIO(item[1]), len(item[1]))

    return in_threads(write, list(enumerate(bodies)))


def client(settings: Settings) -> Minio:
    """The minio SDK, with as many connections as it gets threads."""
    pool = urllib3.PoolManager(maxsize=SDK_THREADS)
    where, region = endpoint(settings).netloc, settings.s3_region
    return Minio(where, *credentials(settings), secure=False, region=region, http_client=pool)


def got(sdk: Minio, key: str) -> bytes:
    """The bytes of an object, by the SDK."""
    response = sdk.get_object(BUCKET, key)
    try:
        return response.read()
    finally:
        response.release_conn()


def in_threads(work: Callable[[str], object] | Callable[[tuple[int, bytes]], object], items: Sequence[object]) -> int:
    """How many items were worked on, in as many threads as the SDK gets."""
    with ThreadPoolExecutor(SDK_THREADS) as pool:
        return sum(1 for _ in pool.map(work, items))


@contextmanager
def readers(settings: Settings, count: int, shares: int) -> Iterator[Callable[[], int]]:
    """Processes that read a share of the objects each, whenever the result is called; it returns how many in all."""
    ends = [count * number // shares for number in range(shares + 1)]
    command = [sys.executable, "-m", "benchmarks.store", "--share"]
    start = partial(subprocess.Popen, env=environment(settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with ExitStack() as stack:
        started = [
            stack.enter_context(start([*command, str(first), str(end)], text=True)) for first, end in pairwise(ends)
        ]

        def answers() -> int:
            return int(sum(answer_of(process) for process in started))

        def read_all() -> int:
            for process in started:
                print(file=process.stdin, flush=True)
            return answers()

        answers()
        yield read_all


def read_when_told(images: Store, first: int, end: int) -> None:
    """Read a share of the objects for each line that comes in, and print how many there were."""
    share = list(images.listing(FOLDER))[first:end]
    read(images, share[:500])
    print(0, flush=True)
    for _ in sys.stdin:
        print(read(images, share), flush=True)


def read(images: Store, objects: Sequence[StoredObject]) -> int:
    """How many objects came."""
    return sum(data is not None for _, data in images.read_many(objects))


def environment(settings: Settings) -> Mapping[str, str]:
    """That of a process that uses the same store."""
    access_key, secret_key = credentials(settings)
    others = {name: value for name, value in os.environ.items() if not name.startswith("SAFELIGHT_")}
    return others | {
        "SAFELIGHT_S3_ENDPOINT": settings.s3_endpoint or "",
        "SAFELIGHT_S3_ACCESS_KEY_ID": access_key,
        "SAFELIGHT_S3_SECRET_ACCESS_KEY": secret_key,
        "SAFELIGHT_S3_REGION": settings.s3_region,
        "SAFELIGHT_THREADS": str(settings.threads),
    }


if __name__ == "__main__":
    main()
