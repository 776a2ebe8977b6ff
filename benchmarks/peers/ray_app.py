"""Ray Serve: two replicas that batch what has queued, behind its proxy. ``python ray_app.py``."""

import os
from typing import Any

from onnx_classifier import Classifier
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
class ImageClassifier:
    """Each replica is an actor with the model."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.0)
    async def classify(self, batch: list[bytes]) -> list[dict[str, Any]]:
        """Class and probability of each image."""
        return self.classifier.answers([self.classifier.decoded(data) for data in batch])

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Class and probability of the request's image."""
        answer: dict[str, Any] = await self.classify(await request.body())
        return answer


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(ImageClassifier.bind(), blocking=True)
