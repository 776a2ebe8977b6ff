"""The CNNs: uint8 pixels in, logits out.

- **Normalisation is the first layer.** Its mean and standard deviation are buffers, stored with the weights: training
  measures them on the training split, and whoever loads the weights gets them too, so that training and serving cannot
  drift apart. Starting weights bring their own; those of torchvision come without, and get ImageNet's.
- ``small_resnet`` halves the image in its first layer, so that nothing runs at full resolution, and has as many stages
  as bring the image down to 4 pixels or less. It is meant for 28 to 64 pixels on a CPU, whose vector units take 16
  channels at a time; its shortcuts have no parameters, because 1x1 convolutions with stride 2 are slow there.
- ``resnet18`` and ``mobilenet_v3_small`` are torchvision's, built without weights: nothing is downloaded. They see
  grey images three times, so that weights made for RGB fit.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from pipeline.artifacts import PixelSpec
from pipeline.errors import InvalidInput

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
WIDTH = 16
"""Channels of small_resnet's stem; each stage doubles them."""
HEADS = ("network.head.", "network.fc.", "network.classifier.3.")
"""Where each architecture keeps the layer that depends on the classes."""


class Classifier(nn.Module):
    """Normalisation and a network: uint8 (N, H, W, C) on any device → float32 logits (N, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, channels: int, network_channels: int) -> None:
        super().__init__()
        grey = channels == 1
        self.register_buffer("mean", torch.tensor([sum(IMAGENET_MEAN) / 3] if grey else IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor([sum(IMAGENET_STD) / 3] if grey else IMAGENET_STD))
        self.network = network
        self._repeats = network_channels // channels

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K), float32, of pixels (N, H, W, C), uint8."""
        normal = pixels.float() * (1 / (255 * self.std)) - self.mean / self.std
        images = normal.permute(0, 3, 1, 2)  # a view: NHWC bytes are what channels_last means
        if self._repeats > 1:
            images = images.expand(-1, self._repeats, -1, -1)
        logits: Tensor = self.network(images)
        return logits.float()


class _Stage(nn.Module):
    """Two 3x3 convolutions that halve the image and double the channels, beside a shortcut without parameters.

    He et al. 2015 (arXiv:1512.03385), option A: zeros fill the shortcut up. Here it takes the mean of four pixels.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, 2 * inputs, 3, 2)
        self.conv2 = _convolution(2 * inputs, 2 * inputs, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv2(torch.relu_(self.conv1(x)))
        shortcut = functional.pad(functional.avg_pool2d(x, 2, ceil_mode=True), (0, 0, 0, 0, 0, x.shape[1]))
        return torch.relu_(inner.add_(shortcut))


def build(architecture: str, classes: int, pixels: PixelSpec, width: int | None = None) -> Classifier:
    """A network with fresh weights from torch's global generator, normalising as ImageNet is until told otherwise.

    Args:
        architecture: ``small_resnet``, ``resnet18`` or ``mobilenet_v3_small``.
        classes: K, the number of logits.
        pixels: what the model's input is; height and width decide how many stages small_resnet has.
        width: channels of small_resnet's stem, by default ``WIDTH``; the others have none to choose.

    Raises:
        InvalidInput: no such architecture, or it has no width.
    """
    if width is not None and architecture != "small_resnet":
        raise InvalidInput(f"width: {architecture} has a fixed width; leave it out, or choose small_resnet.")
    match architecture:
        case "small_resnet":
            model = Classifier(_small_resnet(classes, pixels, width or WIDTH), pixels.channels, pixels.channels)
        case "resnet18":
            model = Classifier(models.resnet18(num_classes=classes), pixels.channels, 3)
        case "mobilenet_v3_small":
            model = Classifier(models.mobilenet_v3_small(num_classes=classes), pixels.channels, 3)
        case _:
            known = "small_resnet, resnet18 or mobilenet_v3_small"
            raise InvalidInput(f"{architecture!r} is not an architecture: choose {known}.")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # mobilenet's 0.01 is meant for hundreds of epochs: after a short training its averages are still wrong.
            module.momentum = 0.1
    return model.to(memory_format=torch.channels_last)


def set_normalisation(model: Classifier, mean: Tensor, std: Tensor) -> None:
    """Make the first layer subtract ``mean`` and divide by ``std``: both (C,), float, of pixels scaled to 0..1.

    A channel without contrast keeps a divisor of 1.
    """
    model.mean.copy_(mean)
    model.std.copy_(torch.where(std > 1e-3, std, 1.0))


def load_starting_weights(model: Classifier, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy ``weights`` into ``model``; a head of another shape keeps its fresh values, which the log says.

    Names are those of a model that this pipeline exported, or torchvision's own (no ``network.`` in front).

    Raises:
        InvalidInput: a tensor other than the head's is missing, unknown, of another shape or not finite.
    """
    given = {_own_name(name): tensor for name, tensor in weights.items()}
    own = model.state_dict()
    afresh = [name for name in own if name.startswith(HEADS) and _shape(given, name) != own[name].shape]
    for name in sorted((own.keys() | given.keys()) - set(afresh)):
        if name not in given and (name in ("mean", "std") or name.endswith("num_batches_tracked")):
            continue
        if _shape(given, name) != _shape(own, name):
            raise InvalidInput(
                f"{source} does not fit this model: tensor {name} is {_described(given, name)} there and "
                f"{_described(own, name)} here; choose weights of the same architecture and channels."
            )
        if not given[name].isfinite().all():
            raise InvalidInput(f"{source} cannot be trained further: its tensor {name} holds NaN or infinity.")
    model.load_state_dict({name: tensor for name, tensor in given.items() if name not in afresh}, strict=False)
    if afresh:
        log.info("%s was made for other classes: %s start afresh", source, ", ".join(afresh))


def _small_resnet(classes: int, pixels: PixelSpec, width: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(
        *(_convolution(pixels.channels, width, 5, 2), nn.ReLU(inplace=True)),
        *(_convolution(width, width, 3, 1), nn.ReLU(inplace=True)),
    )
    side, stage = -(-max(pixels.height, pixels.width) // 2), 0
    while side > 4:
        stage, side = stage + 1, -(-side // 2)
        layers[f"stage{stage}"] = _Stage(width)
        width = 2 * width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(width, classes)
    return nn.Sequential(layers)


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _own_name(name: str) -> str:
    return name if name in ("mean", "std") or name.startswith("network.") else f"network.{name}"


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _described(tensors: Mapping[str, Tensor], name: str) -> str:
    shape = _shape(tensors, name)
    return "missing" if shape is None else " x ".join(map(str, shape)) or "one number"
