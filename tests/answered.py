"""Answers as the server's predictor gives them, without a model."""

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

CLASSES = ("bag", "boot", "shirt")
MODEL, VERSION, DATASET = "shapes", "20260101T000000Z-00000001", "0123456789abcdef"


def answers(images: Sequence[bytes], seed: int = 0, role: str = "champion") -> Any:
    """What a model says of so many images: another ``seed`` says something else."""
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(len(CLASSES)), len(images)).astype(np.float32)
    manifest = SimpleNamespace(model=MODEL, version=VERSION, classes=CLASSES, dataset=SimpleNamespace(version=DATASET))
    return SimpleNamespace(
        live=SimpleNamespace(manifest=manifest),
        role=role,
        probabilities=probabilities,
        best=np.argsort(-probabilities, axis=1).tolist(),
        digests=[hashlib.sha256(image).digest() for image in images],
    )
