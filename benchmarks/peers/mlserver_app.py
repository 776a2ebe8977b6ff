"""MLServer: a custom runtime with adaptive batching and two parallel workers. ``mlserver start mlserver``."""

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_classifier import Classifier


class ImageClassifier(MLModel):
    """Takes images in base64, as the Open Inference Protocol's JSON carries them."""

    async def load(self) -> bool:
        """Load the model, in each worker."""
        self.classifier = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The class of each image that was batched."""
        batch = [self.classifier.decoded(data) for data in Base64Codec.decode_input(payload.inputs[0])]
        labels = [answer["label"] for answer in self.classifier.answers(batch)]
        output = StringCodec.encode_output("label", labels, use_bytes=False)
        return InferenceResponse(model_name=self.name, outputs=[output])
