"""An exported model, loaded: uint8 pixels in, probabilities out. Evaluation, the quality gate and serving share it.

- ONNX Runtime on the CPU, by name. What a machine happens to offer besides (a GPU, a cloud endpoint) would answer with
  slightly other numbers, and the export was proven against torch on exactly this provider.
- **ONNX Runtime is imported here, late, and nowhere else.** Since 1.31 its official builds report to their maker from
  Linux and macOS too, and merely importing it writes a device id to ``~/.cache`` and starts an uploader; only a
  variable that is set before the import prevents it.
- Idle threads sleep. ONNX Runtime's own would spin for a while after each answer, which takes the core from whoever
  answers next. With one thread (the default) there is no pool at all: callers bring the threads.
- The signature of the graph is checked once, when it is loaded; after that only the shape of each batch is.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Corrupted, InvalidInput

INPUT = "pixels"
"""The graph's input: uint8 (N, height, width, channels), N dynamic."""
OUTPUT = "probabilities"
"""The graph's output: float32 (N, classes), each row a distribution."""

ERRORS_ONLY = 3


class OnnxModel:
    """A loaded ONNX graph. Safe to share between threads: a call keeps nothing.

    Attributes:
        shape: (height, width, channels) of one image.
        classes: number of classes.
    """

    def __init__(self, data: bytes, *, threads: int = 1) -> None:
        """Load the ONNX file ``data``; ``threads`` work on one batch.

        Raises:
            Corrupted: ``data`` is no ONNX model that can be loaded.
            InvalidInput: it is one, but not from images to probabilities as ``INPUT`` and ``OUTPUT`` say.
        """
        self._session = _load(data, threads)
        self.shape, self.classes = _signature(self._session.get_inputs(), self._session.get_outputs())

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probability of each class for each image.

        Args:
            pixels: uint8 (N, height, width, channels), as ``images.decode`` makes them.

        Returns:
            float32 (N, classes).

        Raises:
            InvalidInput: ``pixels`` have another shape or type.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self.shape:
            raise InvalidInput(
                f"This model takes uint8 images of shape {self.shape}, not {pixels.dtype} of {pixels.shape[1:]}."
            )
        if not len(pixels):
            return np.zeros((0, self.classes), np.float32)
        answer: NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: pixels})[0]
        return answer


def _load(data: bytes, threads: int) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Not at the top of the file: see the module's docstring.
    import onnxruntime  # noqa: PLC0415
    from onnxruntime.capi import onnxruntime_pybind11_state as refusal  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except (
        refusal.Fail,
        refusal.InvalidArgument,
        refusal.InvalidGraph,
        refusal.InvalidProtobuf,
        refusal.NotImplemented,
        refusal.RuntimeException,
    ) as error:
        raise Corrupted(f"These {len(data):,} bytes cannot be loaded as an ONNX model: {_reason(error)}.") from error


def _signature(inputs: list[Any], outputs: list[Any]) -> tuple[tuple[int, int, int], int]:
    """Shape of one image and number of classes, of a graph that is what we export."""
    found = [(value.name, value.type, len(value.shape)) for value in (*inputs, *outputs)]
    if found != [(INPUT, "tensor(uint8)", 4), (OUTPUT, "tensor(float)", 2)]:
        raise InvalidInput(f"This ONNX graph is not one from uint8 {INPUT} to float32 {OUTPUT}, but {found}.")
    batch, *image = inputs[0].shape
    classes = outputs[0].shape[1]
    if isinstance(batch, int) or not all(isinstance(size, int) for size in (*image, classes)):
        raise InvalidInput(
            f"This ONNX graph must have a free batch size and nothing else free, but takes {inputs[0].shape} "
            f"and gives {outputs[0].shape}."
        )
    height, width, channels = image
    return (height, width, channels), classes


def _reason(error: Exception) -> str:
    """The end of ONNX Runtime's message, which is the part that says what was wrong, as one clause."""
    return " ".join(str(error).rpartition(" : ")[2].split()).rstrip(".")
