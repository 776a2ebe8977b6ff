"""mosec as its image examples have it: base64 in JSON, a stage that decodes, a stage that classifies batches.

``python mosec_app.py --port PORT``; two workers in each stage.
"""

import base64
from typing import Any

from mosec import Server, Worker
from onnx_classifier import Classifier


class Decoding(Worker):
    """Its answer goes to the next stage."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    def forward(self, data: dict[str, str]) -> Any:
        """Pixels of the request's image."""
        return self.classifier.decoded(base64.b64decode(data["image"]))


class Inference(Worker):
    """Gets what has queued."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    def forward(self, data: list[Any]) -> list[dict[str, Any]]:
        """Class and probability of each image."""
        return self.classifier.answers(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decoding, num=2, timeout=30)
    server.append_worker(Inference, num=2, max_batch_size=16, max_wait_time=5, timeout=30)
    server.run()
