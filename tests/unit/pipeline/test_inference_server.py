from pathlib import Path

from pydantic import SecretStr

from pipeline import inference_server
from pipeline.settings import Settings


def test_a_server_gets_these_settings_and_no_others() -> None:
    """Store and credentials as given, nothing of ours that the surroundings said otherwise, the rest untouched."""
    settings = Settings(
        home=Path("/h"), s3_endpoint="http://s:1", s3_access_key_id=SecretStr("k"), models_url="s3://m/x"
    )
    surroundings = {
        "PATH": "/bin",
        "SAFELIGHT_S3_ENDPOINT": "http://other",
        "SAFELIGHT_S3_SECRET_ACCESS_KEY_FILE": "/f",
        "SAFELIGHT_SERVING_TOP_K": "3",
        "SAFELIGHT_SERVING_VERSION": "pinned",
        "SAFELIGHT_SERVING_ALIAS": "challenger",
        "SAFELIGHT_SERVING_MODEL": "dogs",
    }
    assert inference_server.environ(settings, "cats", 81, surroundings) == {
        "PATH": "/bin",
        "SAFELIGHT_HOME": "/h",
        "SAFELIGHT_S3_ENDPOINT": "http://s:1",
        "SAFELIGHT_S3_ACCESS_KEY_ID": "k",
        "SAFELIGHT_MODELS_URL": "s3://m/x",
        "SAFELIGHT_SERVING_MODEL": "cats",
        "SAFELIGHT_SERVING_HOST": "127.0.0.1",
        "SAFELIGHT_SERVING_PORT": "81",
        "SAFELIGHT_SERVING_TOP_K": "3",
    }


def test_settings_survive_the_way_through_the_environment() -> None:
    """A server reads from its environment what the settings said."""
    settings = Settings(home=Path("/h"), store_url="s3://b/p", s3_secret_access_key=SecretStr("s"), threads=3)
    environ = inference_server.environ(settings, "cats", 81, {})
    ours = {name: value for name, value in environ.items() if not name.startswith("SAFELIGHT_SERVING_")}
    assert Settings.from_environ(ours) == settings


def test_a_browser_is_told_the_public_address_and_never_an_internal_one(tmp_path: Path) -> None:
    """The address at which a deployment asks is not handed to people; without another one there is none."""
    inside = Settings(home=tmp_path, inference_url="http://serving:8080")
    assert inference_server.browser_url(inside, "shapes") is None
    public = inside.model_copy(update={"public_url": "https://models.example"})
    assert inference_server.browser_url(public, "shapes") == "https://models.example"
    assert inference_server.browser_url(Settings(home=tmp_path), "shapes") is None
