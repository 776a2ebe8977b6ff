"""The volumes of the stack's secrets: who has one, what lies in them, and whether a certificate is its key's."""

from pathlib import Path

from pipeline.secret_values import Stack
from pipeline.stack_secrets import ALL

CONSUMERS = (
    "object-store",
    "store-init",
    "prefect-server",
    "prefect-init",
    "worker",
    "serving",
    "cli",
    "upload-events",
)
SEAWEEDFS = Stack(store="seaweedfs")


def files(volumes: Path, *names: str) -> dict[str, str]:
    """What lies in volumes, by path."""
    folders = [volumes / name for name in names or (ALL, *CONSUMERS)]
    return {str(path.relative_to(volumes)): path.read_text() for folder in folders for path in folder.iterdir()}


def assert_certificate_fits(folder: Path) -> None:
    """The certificate is its key's, and signed by the authority beside it."""
    from cryptography import x509  # noqa: PLC0415 - only SeaweedFS's tests need it
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    key = load_pem_private_key((folder / "key.pem").read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))
