"""The servers that ``benchmarks.serving`` compares, and what each is sent: one encoded image.

The model is the same ONNX file in ONNX Runtime for all but the naive one, and Pillow decodes (``onnx_classifier``).
What a framework has for speed and documents is switched on: workers, batches, Ray's throughput options, LitServe's
fast queue. mosec comes as in its image examples, and once more in the quickest way that it has.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BOUNDARY = "0123456789abcdef"
WORKERS = "2"


@dataclass(frozen=True, slots=True)
class Body:
    """A kind of request body: made of an encoded image."""

    kind: str
    content_type: str
    of: Callable[[bytes], bytes]


def form(field_name: str) -> Body:
    """A form with one file, as ``curl -F`` sends it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field_name}"; filename="image"\r\n'
    start = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode()
    end = f"\r\n--{BOUNDARY}--\r\n".encode()
    return Body(f"form-{field_name}", f"multipart/form-data; boundary={BOUNDARY}", lambda image: start + image + end)


def base64_of(image: bytes) -> str:
    """For JSON, which has no bytes."""
    return base64.b64encode(image).decode()


def inference_protocol(image: bytes) -> bytes:
    """The Open Inference Protocol's JSON with one image in base64."""
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64_of(image)],
    }
    return json.dumps({"inputs": [tensor]}).encode()


def json_body(field_name: str) -> Body:
    """An object with the image in base64."""
    kind = f"json-{field_name}"
    return Body(kind, "application/json", lambda image: json.dumps({field_name: base64_of(image)}).encode())


RAW = Body("raw", "application/octet-stream", lambda image: image)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server.

    Attributes:
        name: what it is called in the table, and by ``--servers``.
        what: how it is used, for a reader of the table.
        body: what it is sent.
        path: where to.
        command: that starts it, after its Python; ``filled`` fills its braces in.
        requirements: its file in ``peers/requirements``.
        packages: whose versions the table shows.
        environ: what it needs in its environment besides, with braces too.
        label: the class in its answer.
    """

    name: str
    what: str
    body: Body
    path: str
    command: Sequence[str]
    requirements: str
    packages: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    label: Callable[[Any], str] = lambda answer: str(answer["label"])


UVICORN = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")

MOSEC = ("--address", "127.0.0.1", "--port", "{port}", "--timeout", "30000")

PEERS = (
    Peer(
        "naive",
        "FastAPI `UploadFile` + torch, 1 process",
        form("file"),
        "/predict",
        (*UVICORN, "naive:app"),
        "fastapi.txt",
        ("fastapi", "uvicorn", "torch"),
    ),
    Peer(
        "fastapi-onnx",
        "FastAPI `UploadFile` + onnxruntime inline, 2 processes",
        form("file"),
        "/predict",
        (*UVICORN, "--workers", WORKERS, "fastapi_onnx:app"),
        "fastapi.txt",
        ("fastapi", "uvicorn", "onnxruntime"),
    ),
    Peer(
        "ray",
        "Ray Serve, 2 replicas, batches",
        RAW,
        "/",
        ("{here}/ray_app.py",),
        "ray.txt",
        ("ray", "onnxruntime"),
    ),
    Peer(
        "ray-haproxy",
        "the same with its options for throughput",  # its HAProxy listens on all addresses
        RAW,
        "/",
        ("{here}/ray_app.py",),
        "ray.txt",
        ("ray", "onnxruntime"),
        {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
    Peer(
        "bentoml",
        "BentoML, 2 workers, PIL image",
        form("image"),
        "/classify",
        ("-m", "bentoml", "serve", "bentoml_app:ImageClassifier", "--host", "127.0.0.1", "--port", "{port}"),
        "bentoml.txt",
        ("bentoml", "onnxruntime"),
    ),
    Peer(
        "litserve",
        "LitServe, 2 workers, base64 in JSON, batches",
        json_body("image_data"),
        "/predict",
        ("{here}/litserve_app.py",),
        "litserve.txt",
        ("litserve", "onnxruntime"),
    ),
    Peer(
        "mlserver",
        "MLServer, 2 workers, base64 in JSON, batches",
        Body("mlserver", "application/json", inference_protocol),
        "/v2/models/served/infer",
        ("{bin}/mlserver", "start", "{here}/mlserver"),
        "mlserver.txt",
        ("mlserver", "onnxruntime"),
        {"MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "{second}", "MLSERVER_METRICS_PORT": "{third}"},
        lambda answer: str(answer["outputs"][0]["data"][0]),
    ),
    Peer(
        "mosec",
        "mosec, 2 + 2 workers in two stages, base64 in JSON, batches",
        json_body("image"),
        "/inference",
        ("{here}/mosec_app.py", *MOSEC),
        "mosec.txt",
        ("mosec", "onnxruntime"),
    ),
    Peer(
        "mosec-raw",
        "mosec, 2 workers in one stage, raw body, batches",
        RAW,
        "/inference",
        ("{here}/mosec_raw_app.py", *MOSEC),
        "mosec.txt",
        ("mosec", "onnxruntime"),
    ),
)

OURS = tuple(
    Peer(
        name,
        f"Safelight, {what}, 2 processes",
        body,
        "/predict",
        ("-m", "serving"),
        "",
        ("safelight", "fastapi", "uvicorn", "onnxruntime"),
    )
    for name, what, body in (("ours-multipart", "multipart", form("image")), ("ours-raw", "raw body", RAW))
)
"""The product, which needs no environment of its own: two ways to ask one server."""
