"""A model that several ranks train: its gradients, its running statistics and a step's sums are those of all of them.

- DistributedDataParallel averages the gradients while they are being computed. It divides by the number of ranks, so a
  rank's loss weighs as many times its share of the batch: the step is that of the whole batch, however it was shared.
- **Batch normalisation sees what one rank computes at once**, as is usual: torch's ``SyncBatchNorm`` needs a GPU. Its
  running statistics are the mean over the ranks, after each step, so that every rank always holds the same weights,
  and when a checkpoint is written makes no difference.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.ranks import Ranks


class SharedModel:
    """A model on this rank's device; each rank makes its own at the same time, and all get rank 0's weights."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._model = model
        self._ranks = ranks
        self._net = DistributedDataParallel(model, forward_sync_buffers=False) if ranks.several else model
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self._running = [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits, for a backward pass in which the ranks' gradients are averaged."""
        logits: Tensor = self._net(pixels)
        return logits

    def kept(self) -> AbstractContextManager[None]:
        """Passes within are this rank's own: their gradients are averaged by the next pass that is not."""
        if isinstance(self._net, DistributedDataParallel):
            return self._net.no_sync()
        return nullcontext()

    def weight(self, images: int, of: int) -> float:
        """What the mean loss of ``images`` counts in a batch ``of`` so many; 1.0 for one rank that has it all."""
        return self._ranks.world * images / of

    def sum(self, sums: Tensor) -> Callable[[], Tensor]:
        """Begin to add up ``sums`` (2,) and the running statistics; what is returned waits, and gives the sums."""
        if not self._ranks.several:
            return lambda: sums
        told = torch.cat([sums, *self._running])
        wait = self._ranks.add(told)

        def heard() -> Tensor:
            wait()
            total, *running = torch.split(told, [len(sums), *map(len, self._running)])
            for mine, each in zip(self._running, running, strict=True):
                mine.copy_(each / self._ranks.world)
            return total

        return heard

    def settle(self, pixels: Tensor) -> None:
        """A pass over a few images, uint8 (N, H, W, C), that teaches nothing, before several ranks' first step.

        After its first pass DDP orders anew what it adds up together, and with three ranks or more the order decides
        about the last bit. So that a resumed run repeats what it would have done, each begins with such a pass.
        """
        if self._ranks.several:
            before = copy.deepcopy(self._model.state_dict())
            self._net.train()
            self(pixels).sum().backward()  # type: ignore[no-untyped-call]
            self._net.zero_grad()
            self._model.load_state_dict(before)
