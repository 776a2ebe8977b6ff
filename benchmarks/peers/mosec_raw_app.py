"""mosec at its fastest: raw bytes, and one stage that decodes and classifies batches. ``python mosec_raw_app.py``."""

from typing import Any

from mosec import Server, Worker
from onnx_classifier import Classifier


class ImageClassifier(Worker):
    """``deserialize`` is the worker's own, ``forward`` gets what has queued."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    def deserialize(self, data: bytes) -> Any:
        """Pixels of the request's image."""
        return self.classifier.decoded(data)

    def forward(self, data: list[Any]) -> list[dict[str, Any]]:
        """Class and probability of each image."""
        return self.classifier.answers(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(ImageClassifier, num=2, max_batch_size=16, max_wait_time=5, timeout=30)
    server.run()
