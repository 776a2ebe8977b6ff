"""What a training begins with: the weights that it was given, and the normalisation of the images that it has."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from pipeline.datasets import LoadedSplit
from pipeline.errors import InvalidInput, ObjectMissing
from pipeline.ranks import ALONE, Ranks
from pipeline.store import Store
from pipeline.streamed import Streamed

NORMALISATION_IMAGES = 10_000
"""Images on which mean and standard deviation are measured."""
BLOCK_IMAGES = 500
"""Of these images, so many are counted at once."""


@dataclass(frozen=True, slots=True)
class StartingWeights:
    """Tensors by name, where they came from, and the SHA-256 of the file's bytes."""

    source: str
    tensors: Mapping[str, Tensor]
    sha256: str


def read_starting_weights(store: Store, source: str | None) -> StartingWeights | None:
    """The tensors of a file, or of an object of the checkpoints zone; None without a source.

    Raises:
        InvalidInput: it is neither, or no safetensors.
    """
    if source is None:
        return None
    path = Path(source).expanduser()
    try:
        data = path.read_bytes() if path.is_file() else store.get(source)
        return StartingWeights(source, safetensors.torch.load(data), hashlib.sha256(data).hexdigest())
    except ObjectMissing as error:
        raise InvalidInput(f"starting_weights: {source} is neither a file nor a key of {store.url}.") from error
    except OSError as error:
        raise InvalidInput(f"starting_weights: {source} cannot be read: {error.strerror}.") from error
    except SafetensorError as error:
        raise InvalidInput(f"starting_weights: {source} is not a .safetensors file: {error}.") from error


def sample_of(loaded: LoadedSplit | Streamed, group: Ranks) -> NDArray[np.uint8]:
    """Of the images on which normalisation is measured, those that this rank holds."""
    if isinstance(loaded, Streamed) or loaded.places is None:
        return loaded.sample(NORMALISATION_IMAGES)
    part = group.part(len(loaded.labels))
    places = loaded.places[:NORMALISATION_IMAGES]
    held: NDArray[np.uint8] = loaded.pixels[places[(places >= part.start) & (places < part.stop)] - part.start]
    return held


def statistics(pixels: Tensor, group: Ranks = ALONE) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float32 (C,), of pixels scaled to 0..1, those of all ranks.

    Computed from counts of the 256 values, so that neither the order of the images matters nor who holds them.
    """
    counts = torch.zeros(pixels.shape[3], 256, dtype=torch.float64)
    for start in range(0, len(pixels), BLOCK_IMAGES):
        channels = pixels[start : start + BLOCK_IMAGES].flatten(0, 2).T
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
    counts = group.summed(counts)
    shares = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ values
    variance = (shares @ values.square() - mean.square()).clamp(min=0)
    return mean.float(), variance.sqrt().float()
