"""What all servers of ``benchmarks.serving`` get: the same weights in a folder, and the same encoded images.

The weights are random, but no image is like another to them: batch normalisation has seen the images, and the last
layer is scaled so that each class is some image's best one. A server that answers wrongly is therefore found out.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.own_store import small_png
from pipeline import aliases, images, model
from pipeline.artifacts import DatasetVersion, PixelSpec
from pipeline.export import Probabilities, to_onnx
from pipeline.zones import Zones
from tests import tiny_models

MODEL = "served"
IMAGES = 100
ARCHITECTURES = {
    "small": ("small_resnet", PixelSpec(height=28, width=28, channels=1)),
    "resnet18": ("resnet18", PixelSpec(height=224, width=224, channels=3)),
}
CLASSES = tuple(f"class-{number}" for number in range(10))


def encoded_images(choice: str) -> list[bytes]:
    """``IMAGES`` different ones of the model's own size: grey PNGs of 600 bytes, or soft colour JPEGs of 12 kB."""
    return [small_png(number) if choice == "small" else soft_jpeg(number) for number in range(IMAGES)]


def soft_jpeg(number: int) -> bytes:
    """A 224x224 colour JPEG of quality 90, another one for each number."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (random.integers(4, 29), random.integers(4, 29), 3), np.uint8)
    done, encoded = cv2.imencode(".jpg", cv2.resize(coarse, (224, 224)), [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not done:
        raise ValueError("cannot encode a JPEG")
    return bytes(encoded)


def write_model(folder: Path, choice: str, encoded: Sequence[bytes]) -> None:
    """``model.onnx``, ``model.safetensors`` and ``model.json``, which says what they are."""
    architecture, spec = ARCHITECTURES[choice]
    torch.manual_seed(0)
    classifier = model.build(architecture, len(CLASSES), spec)
    pixels = torch.from_numpy(np.stack([images.decode(each, spec) for each in encoded]))
    tell_apart(classifier, pixels)
    weights = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "model.onnx").write_bytes(to_onnx(Probabilities(classifier).eval(), spec))
    about = {"architecture": architecture, "classes": CLASSES, **spec.model_dump()}
    (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")


@torch.no_grad()
def tell_apart(classifier: model.Classifier, pixels: Tensor) -> None:
    """Make the answers to these images (N, H, W, C), uint8, differ from each other; leaves evaluation mode on."""
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees
    classifier.train()(pixels)
    logits = classifier.eval()(pixels)
    last = [module for module in classifier.modules() if isinstance(module, nn.Linear)][-1]
    scale = 2 / logits.std(dim=0)
    last.weight.mul_(scale[:, None])
    last.bias.copy_((last.bias - logits.mean(dim=0)) * scale)


def register(zones: Zones, folder: Path, choice: str) -> str:
    """The model as a version of ``MODEL`` in our own registry, live; which version it is."""
    dataset = DatasetVersion(
        dataset="served",
        version="0123456789abcdef",
        classes=CLASSES,
        pixels=ARCHITECTURES[choice][1],
        counts={"train": IMAGES, "validation": 0, "test": 3},
    )
    onnx_file = (folder / "model.onnx").read_bytes()
    manifest = tiny_models.register(zones.checkpoints, zones.models, MODEL, 1, dataset=dataset, onnx_file=onnx_file)
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, manifest.version, reason="benchmark")
    return manifest.version
