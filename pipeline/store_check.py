"""The proof that an endpoint keeps the promises that Safelight rests on: conditional writes, and listings.

Some servers accept the headers and ignore them: two writers could both believe that they won. And some lose their place
in a listing that is gone on with, as SeaweedFS 4.48 does in a bucket that keeps versions. They are refused when first
opened; ``safelight store check`` runs the same proof on demand.
"""

import secrets
import threading
from collections.abc import Callable

from pipeline.errors import Conflict, InvalidSettings, StoreError
from pipeline.store import Store

MARKER = "safelight-store.json"
FOLDER = "store-check"
RACERS = 4
NEIGHBOURS = ("a", "a-b", "a.b", "a!/b", "aa")
"""Names that stores with folders below tend to order in their own way."""


def prove(store: Store) -> dict[str, bool]:
    """Try each promise on scratch objects below ``FOLDER``; which of them were kept.

    Raises:
        StoreError: the store cannot be reached, or refuses the credentials.
    """
    folder = f"{FOLDER}/{secrets.token_hex(8)}"
    try:
        return {promise: check(store, f"{folder}/{number}") for number, (promise, check) in enumerate(PROMISES.items())}
    finally:
        store.delete([found.key for found in store.listing(folder)])


def refuse_unless_proven(store: Store) -> None:
    """Prove a store when it is opened for the first time; a marker object remembers it.

    Raises:
        InvalidSettings: a promise is broken.
        StoreError: the store cannot be reached, or refuses the credentials.
    """
    if store.head(MARKER) is not None:
        return
    broken = [promise for promise, kept in prove(store).items() if not kept]
    if broken:
        raise InvalidSettings(
            f"{store.url} cannot hold Safelight's data: it does not keep this promise: {broken[0]}; use another store."
        )
    store.write_once(MARKER, b'{"conditional_writes": "proven"}\n')


def _creates_once(store: Store, key: str) -> bool:
    """The second of two creating writes is refused, and changes nothing."""
    return store.write_once(key, b"first") == b"first" and store.write_once(key, b"second") == b"first"


def _one_creator(store: Store, key: str) -> bool:
    """Of several creating writes at once exactly one wins."""
    return _race(store, lambda data: store.compare_and_swap(key, data, etag=None), key)


def _swaps(store: Store, key: str) -> bool:
    """A swap with the etag that was read goes through; one with an older etag is refused."""
    store.put(key, b"one")
    etag = store.get_with_etag(key)[1]
    store.compare_and_swap(key, b"two", etag=etag)
    return _refused(store, key, b"three", etag) and store.get(key) == b"two"


def _one_swapper(store: Store, key: str) -> bool:
    """Of several swaps with the same etag exactly one wins."""
    store.put(key, b"start")
    etag = store.get_with_etag(key)[1]
    return _race(store, lambda data: store.compare_and_swap(key, data, etag=etag), key)


def _no_swap_of_nothing(store: Store, key: str) -> bool:
    """A swap of an object that does not exist is refused."""
    return _refused(store, key, b"ghost", '"00000000000000000000000000000000"') and store.head(key) is None


def _listing_goes_on(store: Store, key: str) -> bool:
    """A listing that is gone on with after any of its keys has all that came after it, and nothing else."""
    for name in NEIGHBOURS:
        store.put(f"{key}/{name}", b"listed")
    found = [each.key for each in store.listing(key)]
    return len(found) == len(NEIGHBOURS) and all(
        [each.key for each in store.listing(key, after=last)] == found[place:] for place, last in enumerate(found, 1)
    )


def _refused(store: Store, key: str, data: bytes, etag: str) -> bool:
    try:
        store.compare_and_swap(key, data, etag=etag)
    except Conflict:
        return True
    return False


def _race(store: Store, write: Callable[[bytes], None], key: str) -> bool:
    """Whether exactly one of ``RACERS`` simultaneous writes wins, and the store holds its bytes."""
    winners: list[bytes] = []
    failures: list[StoreError] = []

    def racer(number: int) -> None:
        data = f"racer {number}".encode()
        try:
            write(data)
        except Conflict:
            return
        except StoreError as error:
            failures.append(error)
        else:
            winners.append(data)

    threads = [threading.Thread(target=racer, args=(number,)) for number in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return len(winners) == 1 and store.get(key) == winners[0]


PROMISES: dict[str, Callable[[Store, str], bool]] = {
    "an object is created once": _creates_once,
    "one of several creators wins": _one_creator,
    "a swap needs the current etag": _swaps,
    "one of several swaps wins": _one_swapper,
    "nothing is swapped where there is nothing": _no_swap_of_nothing,
    "a listing goes on where it stopped": _listing_goes_on,
}
