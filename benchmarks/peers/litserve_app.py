"""LitServe as its guide to speed has it: base64 in JSON, batches, two workers. ``python litserve_app.py``."""

import base64
import os
from typing import Any

import litserve
from onnx_classifier import Classifier


class ImageClassifier(litserve.LitAPI):
    """Each worker decodes, batches and classifies."""

    def setup(self, device: str) -> None:
        """Load the model, in each worker."""
        del device
        self.classifier = Classifier()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Pixels of the request's image."""
        return self.classifier.decoded(base64.b64decode(request["image_data"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they are: the model stacks them."""
        return inputs

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """An answer for each."""
        return output

    def predict(self, x: list[Any]) -> list[dict[str, Any]]:
        """Class and probability of each image."""
        return self.classifier.answers(x)


if __name__ == "__main__":
    api = ImageClassifier(max_batch_size=16, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
