"""The processes that train one model together, as torchrun starts them, and what they say to each other.

- **One process is the case of one rank**: it says nothing, needs no network, and computes what it computed before there
  were others.
- Tensors on the CPU travel by gloo, those on a GPU by NCCL; torch chooses by where they lie.
- **Each rank holds a part of the images and computes a part of each batch**; an image that lies with another rank comes
  from there. So a batch is the same images in the same order however many ranks there are, no image is read from the
  store twice for it, and no rank has more to compute than another.
- **Nobody waits for ever.** A rank that dies closes its connections, which the others notice at once; one that hangs is
  given up after ``SILENCE_S``. Either way all end, and torch elastic starts them again where it was told to.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import InvalidInput, RankLost
from pipeline.parts import part_of, starts

SILENCE_S = 600.0
"""How long a rank may be silent: more than it takes to read its part of the images after the others, or to write a
checkpoint while the store is away."""
WORD_BYTES = 512
WORD = "safelight"
"""The key in torchrun's store under which the first rank's word is."""
ASK_EVERY_S = 0.05
NETWORK = re.compile(r"gloo|nccl|connection|time(d )?out|peer|socket", re.IGNORECASE)
"""What plain errors of gloo and NCCL speak of."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together.

    Attributes:
        rank: its number, from 0 on; rank 0 holds the lease, writes, and talks to people.
        world: how many there are.
        local: its number on this machine, which is the number of its GPU.
        local_world: how many there are on this machine, which share its disk.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def device(self, wanted: torch.device) -> torch.device:
        """The device for this rank: of several GPUs its own, which becomes the process's current one.

        Raises:
            InvalidInput: this machine has fewer GPUs than processes.
        """
        if wanted.type != "cuda" or not self.several:
            return wanted
        if self.local >= torch.cuda.device_count():
            raise InvalidInput(
                f"Process {self.local + 1} of this machine has no GPU of its own, since there are "
                f"{torch.cuda.device_count()}: start as many (--nproc-per-node), or set SAFELIGHT_DEVICE=cpu."
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def part(self, count: int) -> slice:
        """Which of ``count`` things are this rank's."""
        return part_of(count, self.rank, self.world)

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is up at any rank."""
        if not self.several:
            return list(flags)
        up = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(up, distributed.ReduceOp.MAX)
        return [bool(each) for each in up.tolist()]

    def add(self, tensor: Tensor) -> Callable[[], object]:
        """Begin to add up what each rank has in ``tensor``, in place; to be called: wait until that is done."""
        work = distributed.all_reduce(tensor, async_op=True)
        return work.wait

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place; the very same bits at each of them."""
        if self.several:
            distributed.all_reduce(tensor)
        return tensor

    def say(self, word: str) -> str:
        """A word (up to ``WORD_BYTES`` bytes) from rank 0 to the others, which call ``listen``; the word."""
        if self.several:
            distributed.broadcast(_as_tensor(word), 0)
        return word

    def listen(self) -> str:
        """What rank 0 says next."""
        heard = torch.zeros(WORD_BYTES, dtype=torch.uint8)
        distributed.broadcast(heard, 0)
        return bytes(heard.tolist()).rstrip(b"\0").decode()

    def fetch(self, held: Tensor, places: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """The images of this rank's part of a batch, from the ranks that hold them; all ranks call it.

        Args:
            held: this rank's part of all images, uint8 (n, H, W, C).
            places: where each image of the batch lies among those of all ranks, one rank's after the other's, (B,).
            images: how many there are.

        Returns:
            uint8 (b, H, W, C), and int64 (b,): which of these is the first image of the part, the second, and so on.
        """
        bounds = torch.tensor(starts(images, self.world))
        owners = torch.searchsorted(bounds, places, right=True) - 1
        ours, wanted = owners == self.rank, owners[self.part(len(places))]
        rows = (places[ours] - bounds[self.rank]).to(held.device)
        sent = [int(ours[part_of(len(places), rank, self.world)].sum()) for rank in range(self.world)]
        received = torch.bincount(wanted, minlength=self.world).tolist()
        found = held.new_empty(len(wanted), *held.shape[1:])
        distributed.all_to_all_single(found, held.index_select(0, rows), received, sent)
        return found, torch.argsort(torch.argsort(wanted, stable=True))


ALONE = Ranks()


@contextmanager
def joined(environ: Mapping[str, str], *, silence_s: float = SILENCE_S) -> Iterator[Ranks]:
    """This process among those that torchrun started, found by its variables in ``environ``; alone without them.

    Raises:
        InvalidInput: some of those variables are missing.
        RankLost: another one ended, or was silent for too long.
    """
    world = int(environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if missing:
        raise InvalidInput(f"WORLD_SIZE is {world}, but {missing[0]} is not set: start with torchrun, or unset it.")
    local, local_world = int(environ.get("LOCAL_RANK", "0")), int(environ.get("LOCAL_WORLD_SIZE", "1"))
    group = Ranks(int(environ["RANK"]), world, local, local_world)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo"
    try:
        silence = timedelta(seconds=silence_s)
        store, _, _ = next(rendezvous("env://", timeout=silence))
        own = _own_words(store, group, silence_s)
        distributed.init_process_group(backend, store=own, rank=group.rank, world_size=world, timeout=silence)
        yield group
    except RuntimeError as error:
        if not is_of_network(error):
            raise
        raise RankLost(
            f"Process {group.rank + 1} of {world} stops, because another one of this training ended or did not answer "
            f"for {silence_s:.0f} s ({_first_sentence(error)}); the same command goes on from the last checkpoint."
        ) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _own_words(store: Store, group: Ranks, silence_s: float) -> Store:
    """A part of torchrun's store in which nobody spoke before, found by all ranks of this start.

    After a restart that store still holds the addresses of the ranks before (torch 2.14), and who reads one of those
    waits for the dead. So the first rank thinks of a word, and welcomes each other one that has heard it and says so
    with a word of its own; what is read from an earlier start has been answered to somebody else.
    """
    word = secrets.token_hex(8)
    if group.first:
        store.set(WORD, word)
        for other in range(1, group.world):
            store.set(f"{word}/welcome/{other}", store.get(f"{word}/here/{other}").decode())
        return PrefixStore(word, store)
    ends = time.monotonic() + silence_s
    while time.monotonic() < ends:
        heard = store.get(WORD).decode()
        store.set(f"{heard}/here/{group.rank}", word)
        welcome = f"{heard}/welcome/{group.rank}"
        if store.check([welcome]) and store.get(welcome).decode() == word:
            return PrefixStore(heard, store)
        time.sleep(ASK_EVERY_S)
    raise distributed.DistStoreError("the first one did not answer")


def is_of_network(error: RuntimeError) -> bool:
    """Whether a process group failed, rather than a computation; from within a backward pass it is a plain error."""
    return isinstance(error, distributed.DistError) or NETWORK.search(str(error)) is not None


def _first_sentence(error: RuntimeError) -> str:
    """What a library says, without the place in its source and its advice."""
    said = re.sub(r"^\[\S+:\d+\] ", "", str(error).partition("\n")[0])
    return said.partition(". ")[0].rstrip(".")


def _as_tensor(word: str) -> Tensor:
    return torch.tensor(list(word.encode().ljust(WORD_BYTES, b"\0")), dtype=torch.uint8)
