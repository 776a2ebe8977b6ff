"""The object store: get, put, list, read many, write once, compare and swap. It knows no ML word.

- Transport is obstore's. Its own retries are off, because they are silent: every request here is repeated by one rule
  (``patience``), with a line in the log, for as long as ``store_patience_s`` says.
- **Write once** and **compare and swap** are the only ways to write what others rely on. A refused or unanswered
  conditional write is settled by reading back: our bytes there mean that we won. This is sound because callers make
  every state's bytes unique (a digest in the key, or a nonce in the value).
- Bytes that must be right are read with the SHA-256 that their manifest names (``get_verified``).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import obstore
from obstore import exceptions
from obstore.store import ObjectStore, from_url

from pipeline import refusals
from pipeline.ahead import ahead
from pipeline.errors import (
    Conflict,
    Corrupted,
    InvalidSettings,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)
from pipeline.patience import Patience
from pipeline.settings import Settings

T = TypeVar("T")
R = TypeVar("R")

REQUEST_TIMEOUT = timedelta(seconds=30)
"""Without a byte: until the answer begins, a small upload included, and between the pieces of a body."""
UPLOAD_TIMEOUT = timedelta(seconds=150)
"""Until the answer to an upload of more than ``LARGE_BYTES`` begins: 16 images of 32 MiB at once at 30 Mbit/s."""
LARGE_BYTES = 4 << 20
DOWNLOAD_TIMEOUT = timedelta(minutes=15)
"""For one object as a whole, however steadily it trickles."""
READS_PER_THREAD = 2
"""``read_many`` keeps twice as many requests under way as there are ``threads``: reads wait for the store more than
they work, while more writes at once only get in each other's way (``docs/decisions/object-io.md``)."""
BYTES_IN_FLIGHT = 256 << 20
"""How much ``read_many`` and ``write_many`` hold at most; one larger object still passes, alone."""
PAGE = 1000
"""Objects of a listing in memory at once; a shorter page is the last one."""
UNKNOWN_TIME = datetime.min.replace(tzinfo=UTC)
CONFLICT_RETRIES = 8
"""S3 may answer 409 to a conditional write that met another one; it must then be sent again."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One line of a listing: ``size`` in bytes, ``modified`` in UTC."""

    key: str
    size: int
    etag: str
    modified: datetime


def promised(key: str, size: int) -> StoredObject:
    """An object of so many bytes as a record names it, to be read by ``read_many``."""
    return StoredObject(key, size, "", UNKNOWN_TIME)


class Store:
    """One zone of the object store; keys are relative to its URL. Safe to share between threads."""

    def __init__(
        self,
        backend: ObjectStore,
        url: str,
        *,
        threads: int = 16,
        patience: Patience | None = None,
        uploads: ObjectStore | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            backend: answers requests.
            url: of the zone.
            threads: requests at once; ``READS_PER_THREAD`` times as many where many are read.
            patience: shared by the zones of one store; None: an absent store is not asked again.
            uploads: the same as ``backend`` with more time, for large bodies.
        """
        self.url = url
        self._backend = backend
        self._uploads = uploads or backend
        self._threads = threads
        self._patience = patience or Patience(0, "the object store")

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def get(self, key: str) -> bytes:
        """The bytes under ``key``.

        Raises:
            ObjectMissing: there is none.
        """
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The bytes under ``key``, and the etag that ``compare_and_swap`` expects.

        Raises:
            ObjectMissing: there is none.
        """
        return self._attempt(lambda: self._fetched(key), "GET", key)

    def get_verified(self, key: str, sha256: str) -> bytes:
        """The bytes under ``key``, whose SHA-256 must be ``sha256`` (hexadecimal).

        Raises:
            ObjectMissing: there is no such object.
            Corrupted: its bytes are others.
        """
        data = self.get(key)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Corrupted(f"{self.url}/{key} does not hold the bytes that its manifest names: it was altered.")
        return data

    def get_if_present(self, key: str) -> bytes | None:
        """The bytes under ``key``, or None."""
        try:
            return self.get(key)
        except ObjectMissing:
            return None

    def head(self, key: str) -> StoredObject | None:
        """What a listing says of ``key``, or None."""
        try:
            return _stored(self._attempt(lambda: obstore.head(self._backend, key), "HEAD", key))
        except ObjectMissing:
            return None

    def listing(self, prefix: str = "", *, after: str | None = None) -> Iterator[StoredObject]:
        """All objects below the folder ``prefix``, in the store's own order, one page in memory at a time.

        Args:
            prefix: of the keys.
            after: only what comes after this key.

        Raises:
            StoreError: the store goes round in circles.
        """
        ends = set()
        while True:
            page = self._attempt(lambda: self._page(prefix, after), "LIST", prefix)  # noqa: B023 - called at once
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].key
            if after in ends:
                raise StoreError(f"The listing of {self.url}/{prefix} comes back to {after}: use another store.")
            ends.add(after)

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below the folder ``prefix``, sorted."""
        found = self._attempt(lambda: obstore.list_with_delimiter(self._backend, prefix or None), "LIST", prefix)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def put(self, key: str, data: bytes) -> None:
        """Write ``data``, whatever was there. For objects on which no other writer's decision rests."""
        self._attempt(lambda: self._upload(key, data, "overwrite"), "PUT", key)

    def write_once(self, key: str, data: bytes) -> bytes:
        """Write ``data`` unless the key exists already; return the bytes that the store holds from now on.

        Of several writers the first one wins, and all get its bytes.
        """
        return data if self._written(key, data, "create") else self.get(key)

    def compare_and_swap(self, key: str, data: bytes, *, etag: str | None) -> None:
        """Replace the object whose etag is ``etag`` (None: there must be no object) by ``data``.

        ``data`` must be unlike every other state of the object (carry a nonce): a stale etag, which is only a hash of
        the bytes, could match again otherwise, and an unanswered write could not be settled.

        Raises:
            Conflict: another writer was there first; nothing was written.
        """
        if not self._written(key, data, "create" if etag is None else {"e_tag": etag}):
            raise Conflict(f"{self.url}/{key} was changed by another writer.")

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already are fine."""
        for _ in self._ahead(keys, self._delete, lambda _: 0):
            pass

    def read_many(self, objects: Iterable[StoredObject]) -> Iterator[tuple[StoredObject, bytes | None]]:
        """Each object with its bytes, in order; None where it is gone by now.

        Reads ``READS_PER_THREAD`` times ``threads`` objects at a time and holds at most ``BYTES_IN_FLIGHT`` bytes.
        """
        threads = READS_PER_THREAD * self._threads
        yield from ahead(objects, self._read, lambda item: item.size, threads=threads, limit=BYTES_IN_FLIGHT)

    def write_many(self, items: Iterable[tuple[str, bytes]]) -> Iterator[str]:
        """Put each pair of key and bytes, several at a time; yields the keys in order, as they are stored."""
        for (key, _), _ in self._ahead(items, lambda item: self.put(*item), lambda item: len(item[1])):
            yield key

    def _upload(self, key: str, data: bytes, mode: Any) -> None:
        backend = self._uploads if len(data) > LARGE_BYTES else self._backend
        obstore.put(backend, key, data, mode=mode, use_multipart=False)

    def _fetched(self, key: str) -> tuple[bytes, str]:
        result = obstore.get(self._backend, key)
        return result.bytes().to_bytes(), result.meta["e_tag"] or ""

    def _read(self, item: StoredObject) -> bytes | None:
        """The bytes of a listed object, None where it is gone."""

        def request() -> bytes:
            data, _ = self._fetched(item.key)
            # A body that breaks off is an error of the transport's; one whose announced length is wrong is not. Other
            # bytes than listed may also mean that the object was replaced since.
            if len(data) != item.size and obstore.head(self._backend, item.key)["size"] != len(data):
                raise StoreUnavailable(f"GET {self.url}/{item.key}: {len(data)} bytes came of {item.size}.")
            return data

        try:
            return self._attempt(request, "GET", item.key)
        except ObjectMissing:
            return None

    def _page(self, prefix: str, after: str | None) -> list[StoredObject]:
        pages = obstore.list(self._backend, prefix or None, offset=after, chunk_size=PAGE)
        return [_stored(meta) for meta in next(iter(pages), [])]

    def _delete(self, key: str) -> None:
        try:
            self._attempt(lambda: obstore.delete(self._backend, key), "DELETE", key)
        except ObjectMissing:
            return

    def _written(self, key: str, data: bytes, mode: Any) -> bool:
        """Whether a conditional put left ``data`` in the store."""
        for _ in range(CONFLICT_RETRIES):
            try:
                self._attempt(lambda: self._upload(key, data, mode), "PUT", key)
            except (Conflict, ObjectMissing):
                found, etag = self._state(key)
                # Ours there: an earlier copy of the request went through and its answer was lost.
                # Still as expected: the store answered 409, two writers met and both must come again.
                as_expected = found is None if mode == "create" else etag == mode["e_tag"]
                if found == data or not as_expected:
                    return found == data
            else:
                return True
        raise StoreUnavailable(f"{self.url}/{key} could not be written: the store keeps refusing; try again later.")

    def _state(self, key: str) -> tuple[bytes | None, str | None]:
        try:
            return self.get_with_etag(key)
        except ObjectMissing:
            return None, None

    def _ahead(self, items: Iterable[T], work: Callable[[T], R], size: Callable[[T], int]) -> Iterator[tuple[T, R]]:
        return ahead(items, work, size, threads=self._threads, limit=BYTES_IN_FLIGHT)

    def _attempt(self, request: Callable[[], R], action: str, key: str) -> R:
        """What ``request`` returns, repeated while the store is away, its refusals as errors of ours."""
        return self._patience(lambda: self._translated(request, action, key), f"{action} {self.url}/{key}")

    def _translated(self, request: Callable[[], R], action: str, key: str) -> R:
        try:
            answer = request()
        except (FileNotFoundError, NotImplementedError, ValueError, exceptions.BaseError) as error:
            kind, what = refusals.meaning(error, reading=action in {"GET", "HEAD"})
            raise kind(f"{action} {self.url}/{key}: {what}.") from error
        return answer


def open_store(url: str, settings: Settings, patience: Patience | None = None) -> Store:
    """The zone at ``url`` (``s3://bucket/prefix``), with the settings' credentials or, without, AWS's variables.

    Nothing is sent yet. Zones of one store share one ``patience`` (``patience_with``).

    Raises:
        InvalidSettings: the URL cannot be understood.
    """
    given = {
        "endpoint": settings.s3_endpoint,
        "access_key_id": settings.s3_access_key_id and settings.s3_access_key_id.get_secret_value(),
        "secret_access_key": settings.s3_secret_access_key and settings.s3_secret_access_key.get_secret_value(),
        "region": settings.s3_region,
        # The server compares what it got with what was sent; not every server looks at the signed digest alone.
        "checksum_algorithm": "SHA256",
    }
    config: Any = {name: value for name, value in given.items() if value} if url.startswith("s3://") else {}
    try:
        backend = _connected(url, config, REQUEST_TIMEOUT)
        # What lives in this process's memory must not be opened twice.
        uploads = None if url.startswith("memory:") else _connected(url, config, UPLOAD_TIMEOUT)
    except (exceptions.BaseError, ValueError) as error:
        raise InvalidSettings(f"{url} is not the URL of an object store: {refusals.first_line(error)}.") from error
    patience = patience or patience_with(settings)
    return Store(backend, url.rstrip("/"), uploads=uploads, threads=settings.threads, patience=patience)


def _connected(url: str, config: Any, silence: timedelta) -> ObjectStore:
    return from_url(
        url,
        config=config,
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": silence,
            "timeout": DOWNLOAD_TIMEOUT,
        },
        retry_config={"max_retries": 0},
    )


def patience_with(settings: Settings) -> Patience:
    """The patience with the store that the settings name."""
    where = f" at {settings.s3_endpoint}" if settings.s3_endpoint else ""
    return Patience(settings.store_patience_s, f"the object store{where}")


def _stored(meta: Any) -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["e_tag"] or "", meta["last_modified"])
