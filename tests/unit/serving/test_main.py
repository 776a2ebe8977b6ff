import socket
import subprocess
import sys

import pytest

WELL = {
    "SAFELIGHT_SERVING_MODEL": "shapes",
    "SAFELIGHT_SERVING_PORT": "0",
    "SAFELIGHT_S3_ENDPOINT": "http://127.0.0.1:9",
    "SAFELIGHT_S3_ACCESS_KEY_ID": "unused",
    "SAFELIGHT_S3_SECRET_ACCESS_KEY": "unused",
}


def serving(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """``python -m serving`` in an environment of its own."""
    return subprocess.run(
        [sys.executable, "-m", "serving"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"SAFELIGHT_SERVING_MODEL": ""}, "SAFELIGHT_SERVING_MODEL is not set"),
        ({"SAFELIGHT_SERVING_TOPK": "3"}, "did you mean SAFELIGHT_SERVING_TOP_K?"),
        ({"SAFELIGHT_MODELS_ULR": "x"}, "did you mean SAFELIGHT_MODELS_URL?"),
        ({"SAFELIGHT_S3_ENDPOINT": ""}, "Nothing says where the models are"),
        (
            {"SAFELIGHT_SERVING_HOST": "no.such.host.invalid", "SAFELIGHT_SERVING_API_KEYS": "off"},
            "SAFELIGHT_SERVING_HOST: no.such",
        ),
        (
            {"SAFELIGHT_SERVING_HOST": "::"},
            "`safelight keys new NAME` makes one), or say SAFELIGHT_SERVING_API_KEYS=off",
        ),
        ({"SAFELIGHT_SERVING_API_KEYS_FILE": "/none"}, "SAFELIGHT_SERVING_API_KEYS_FILE: /none cannot be read"),
        ({"SAFELIGHT_MODELS_URL": "nonsense"}, "nonsense is not the URL of an object store"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_status_2(changed: dict[str, str], sentence: str) -> None:
    """No traceback, and the variable is named."""
    done = serving(WELL | changed)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_taken_port_is_one_sentence_and_status_1() -> None:
    """A second server on the same port says so and ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serving(WELL | {"SAFELIGHT_SERVING_PORT": str(taken.getsockname()[1])})
    assert done.returncode == 1
    assert "cannot listen on 127.0.0.1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_serving_loads_neither_torch_nor_prefect() -> None:
    """All of the server imported, none of what only the pipeline needs is loaded."""
    code = "import serving.__main__, serving.worker, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "fastapi" in loaded
    assert not loaded & {"torch", "torchvision", "prefect", "pyarrow", "minio", "pandas", "matplotlib", "onnx"}


def test_importing_the_server_does_nothing() -> None:
    """No thread, no ONNX Runtime, no settings read: all that happens in main()."""
    code = "import serving.__main__, sys, threading; print(threading.active_count(), 'onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1", "False"]
