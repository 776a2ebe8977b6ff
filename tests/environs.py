"""What a process of the product, started by a test, is told by its environment."""

import os

from pipeline.settings import Settings


def credentials(settings: Settings) -> tuple[str, str]:
    """Access key and secret key of the store."""
    assert settings.s3_access_key_id
    assert settings.s3_secret_access_key
    return settings.s3_access_key_id.get_secret_value(), settings.s3_secret_access_key.get_secret_value()


def environ(settings: Settings, **more: str) -> dict[str, str]:
    """This process's environment with the store and the home of ``settings``, none of a person's own, and ``more``."""
    access, secret = credentials(settings)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFELIGHT_", "PREFECT_"))}
    return kept | {
        "SAFELIGHT_HOME": str(settings.home),
        "SAFELIGHT_STORE_URL": settings.store_url or "",
        "SAFELIGHT_STORE_PATIENCE_S": str(settings.store_patience_s),
        "SAFELIGHT_S3_ENDPOINT": settings.s3_endpoint or "",
        "SAFELIGHT_S3_ACCESS_KEY_ID": access,
        "SAFELIGHT_S3_SECRET_ACCESS_KEY": secret,
        **more,
    }


def on_one_core(settings: Settings, **more: str) -> dict[str, str]:
    """The same for a stage beside many others, whose threads would only wait for each other."""
    return environ(settings, SAFELIGHT_DEVICE="cpu", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", **more)
