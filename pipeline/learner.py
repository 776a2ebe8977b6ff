"""A model that learns: one optimizer step, prediction, and everything that has to be saved to go on exactly.

- SGD with Nesterov momentum under a one-cycle schedule (Smith 2017, arXiv:1708.07120): the rate rises and falls in
  straight lines, and is a function of the step's number alone.
- Norms and biases get no weight decay.
- Several ranks take a step together (``shared_model``). One computes its images in parts where they shall not be in
  memory at once, and adds up their gradients: the batch stays what it is.
- Mixed precision on CUDA only: bfloat16 where the device computes it, else float16 with scaled gradients. On CPUs
  without matrix units it is several times slower.
"""

import copy
import ctypes
import logging
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.artifacts import PixelSpec, TrainConfig
from pipeline.augment import seed_of
from pipeline.errors import InvalidInput
from pipeline.model import Classifier
from pipeline.parts import part_of
from pipeline.ranks import ALONE, Ranks
from pipeline.shared_model import SharedModel

log = logging.getLogger(__name__)

MOMENTUM = 0.9
WARM_UP = 0.25
"""Share of the steps in which the learning rate rises."""
RATE = 0.5
GENTLE_RATE = 0.05
"""Starting weights would be forgotten at the rate at which fresh ones learn."""
EPOCHS = {"small_resnet": 12}
OTHER_EPOCHS = 5
"""Passes over the images, unless their number is given: a smaller network has time for more of them."""
STEPS = 400
"""Optimizer steps that a run takes at least, unless the number of epochs is given."""
BATCHES = 8
"""Steps that an epoch has at least, unless they would be smaller than ``SMALL_BATCH``."""
SMALL_BATCH = 16
KEPT_BYTES = 1 << 30
"""Freed memory that a process keeps for its next step at most."""
MAPPED_BYTES = 1 << 25
"""glibc maps blocks above this anew each time; it takes no higher bound."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Names of glibc's ``malloc.h``."""
STEP_PIXELS = 1 << 22
"""Pixels per optimizer step at most (256 images of 128 x 128), so that large images need neither the memory of a
server nor many seconds between two looks at ``should_stop``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a configuration meets a number of images.

    Attributes:
        images: training images.
        batches: optimizer steps per epoch; their sizes differ by one at most, and none is smaller than two.
        epochs: passes over the images.
        learning_rate: highest rate per 256 images of a batch.
    """

    images: int
    batches: int
    epochs: int
    learning_rate: float

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.batches * self.epochs

    @property
    def peak(self) -> float:
        """The highest learning rate, in proportion to the batch (Goyal et al. 2017, arXiv:1706.02677)."""
        return self.learning_rate * self.images / self.batches / 256

    def rate(self, step: int) -> float:
        """The learning rate of the step that follows ``step`` finished ones."""
        rising = max(1.0, WARM_UP * self.steps)
        done = step + 0.5
        return self.peak * min(done / rising, (self.steps - done) / max(0.5, self.steps - rising))


def plan(config: TrainConfig, images: int, pixels: PixelSpec) -> Plan:
    """The plan of a training run on that many images.

    Raises:
        InvalidInput: one image, or none, is too few for batch normalisation.
    """
    if images < 2:
        raise InvalidInput(f"Training needs at least two images, and this dataset's training split has {images}.")
    size = min(config.batch_size, max(SMALL_BATCH, images // BATCHES))
    size = max(2, min(size, STEP_PIXELS // (pixels.height * pixels.width)))
    batches = min(math.ceil(images / size), images // 2)
    epochs = config.epochs or max(EPOCHS.get(config.architecture, OTHER_EPOCHS), math.ceil(STEPS / batches))
    return Plan(images, batches, epochs, config.learning_rate or (GENTLE_RATE if config.starting_weights else RATE))


class Learner:
    """A model on its device, with what trains it.

    Args:
        model: what learns.
        config: how.
        device: of this process.
        ranks: the processes that learn together; each makes its own at the same time, and gets rank 0's weights.
        images_at_once: how many images of a step are computed together, all of this process's by default.
    """

    def __init__(
        self,
        model: Classifier,
        config: TrainConfig,
        device: torch.device,
        *,
        ranks: Ranks = ALONE,
        images_at_once: int | None = None,
    ) -> None:
        self.model = model.to(device)
        self.device = device
        self.images_at_once = images_at_once
        self._ranks = ranks
        self._shared = SharedModel(self.model, ranks)
        self._smoothing = config.label_smoothing
        self._seed = config.seed
        self._optimizer = torch.optim.SGD(
            _groups(model, config.weight_decay), lr=0.0, momentum=MOMENTUM, nesterov=True, fused=device.type != "mps"
        )
        self._half = _half(device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._half is torch.float16)

    @property
    def precision(self) -> str:
        """What the convolutions compute in."""
        return str(self._half or torch.float32).removeprefix("torch.")

    def learn(self, pixels: Tensor, labels: Tensor, rate: float, step: int, of: int | None = None) -> Tensor:
        """Take one step; the sums over the batch of the loss and of the right predictions, float32 (2,).

        Args:
            pixels: uint8 (B, H, W, C), on the device.
            labels: int64 (B,), on the device.
            rate: the learning rate.
            step: its number, from which dropout's generators are seeded.
            of: images of the batch at all ranks, where this one has a part of it.
        """
        others = (self._ranks.rank,) if self._ranks.rank else ()
        torch.manual_seed(seed_of(self._seed, "dropout", step, *others))
        self.model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        *parts, last = self._parts(len(labels))
        sums = torch.zeros(2, device=self.device)
        for part in parts:
            with self._shared.kept():
                loss, seen = self._loss(pixels[part], labels[part], of or len(labels))
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                sums += seen
        loss, seen = self._loss(pixels[last], labels[last], of or len(labels))
        summed = self._shared.sum(sums + seen)  # under way while gradients are computed
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return summed()

    @torch.no_grad()
    def judge(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The sums over the batch of the loss and of the right predictions, float32 (2,), without learning."""
        self.model.eval()
        logits = self._logits(pixels, self.model)
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        return torch.stack([loss, (logits.argmax(1) == labels).sum()])

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The model's weights and the optimizer's state by name; with ``settings`` all that ``restore`` needs."""
        momentum = {
            f"{index}.{name}": tensor
            for index, state in self._optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
            if isinstance(tensor, Tensor)
        }
        return {"weights": self.model.state_dict(), "optimizer": momentum}

    def settings(self) -> dict[str, Any]:
        """The state that is not tensors: numbers, as JSON holds them."""
        return {"scaler": self._scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], settings: Mapping[str, Any]) -> None:
        """Go back to where ``tensors`` and ``settings`` were taken."""
        self.model.load_state_dict(tensors["weights"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.get("optimizer", {}).items():
            index, _, field = name.partition(".")
            state.setdefault(int(index), {})[field] = tensor
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})
        for parameter, restored in self._optimizer.state.items():
            for field, tensor in restored.items():
                # Files hold tensors in plain order; the fused step walks weights and momentum as they lie in memory.
                restored[field] = torch.empty_like(parameter).copy_(tensor)
        self._scaler.load_state_dict(settings["scaler"])

    def settle(self, pixels: Tensor) -> None:
        """Prepare for the first step with a few images, uint8 (N, H, W, C); it teaches nothing."""
        self._shared.settle(pixels.to(self.device))

    def _loss(self, pixels: Tensor, labels: Tensor, of: int) -> tuple[Tensor, Tensor]:
        """The mean loss, as it counts in a batch ``of`` so many images, and the sums of loss and right predictions."""
        logits = self._logits(pixels, self._shared)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        sums = torch.stack([loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()])
        return loss * self._shared.weight(len(labels), of), sums

    def _logits(self, pixels: Tensor, model: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast(self.device.type, self._half, enabled=self._half is not None):
            return model(pixels)

    def _parts(self, count: int) -> list[slice]:
        """What is computed at once of so many images; never a single one, of which there is no variance."""
        parts = max(1, min(math.ceil(count / (self.images_at_once or count)), count // 2))
        return [part_of(count, part, parts) for part in range(parts)]


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed after a step for the next one; whether it was told. Others keep it anyway.

    By default it hands large blocks back to the system at once, and gets them again, page by page and zeroed, a
    moment later. That took up to a third of a step's time.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    wanted = {M_MMAP_THRESHOLD: MAPPED_BYTES, M_TRIM_THRESHOLD: KEPT_BYTES, M_TOP_PAD: MAPPED_BYTES}
    told = [libc.mallopt(name, value) for name, value in wanted.items()]
    return all(told)


def choose_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``mps``; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        InvalidInput: the device that was asked for by name is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available.get(wanted, False):
        there = " or ".join(["auto", *(name for name, is_there in available.items() if is_there)])
        raise InvalidInput(f"Device {wanted!r} is not available on this machine: choose {there}.")
    return torch.device(wanted)


def able(model: Classifier, device: torch.device, pixels: Tensor) -> torch.device:
    """``device``, or the CPU where ``device`` is MPS and lacks an operation that training this model needs."""
    if device.type != "mps":
        return device
    try:
        copy.deepcopy(model).to(device)(pixels[:2].to(device)).sum().backward()
    except NotImplementedError as error:
        log.warning("training on the CPU, because MPS lacks an operation: %s", str(error).partition("\n")[0])
        return torch.device("cpu")
    return device


def _half(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _groups(model: Classifier, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: matrices and kernels get it, norms and biases do not."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
