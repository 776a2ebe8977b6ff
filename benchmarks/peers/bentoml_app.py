"""BentoML: a service of two workers that takes a PIL image, as its documentation of image input has it.

``bentoml serve bentoml_app:ImageClassifier``.
"""

from typing import Any

import bentoml
from onnx_classifier import Classifier
from PIL.Image import Image


@bentoml.service(workers=2)
class ImageClassifier:
    """Each worker is a process with the model."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api
    def classify(self, image: Image) -> dict[str, Any]:
        """Class and probability of an image."""
        return self.classifier.answers([self.classifier.pixels(image)])[0]
