"""What the peers that serve the ONNX model share: Pillow, one session, one thread; the frameworks bring the workers."""

import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image


class Classifier:
    """The model in ``$MODEL_FOLDER``."""

    def __init__(self) -> None:
        folder = Path(os.environ["MODEL_FOLDER"])
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.classes = about["classes"]
        self.shape = about["height"], about["width"], about["channels"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=providers)

    def decoded(self, data: bytes) -> NDArray[np.uint8]:
        """Pixels, uint8 (height, width, channels), of an encoded image."""
        return self.pixels(Image.open(BytesIO(data)))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Pixels, uint8 (height, width, channels), of an opened image."""
        height, width, channels = self.shape
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height))
        return np.asarray(image).reshape(self.shape)

    def answers(self, batch: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """Class and probability of each image."""
        probabilities = self.session.run(None, {"pixels": np.stack(batch)})[0]
        best = probabilities.argmax(axis=1)
        return [
            {"label": self.classes[index], "probability": float(row[index])}
            for row, index in zip(probabilities, best, strict=True)
        ]
