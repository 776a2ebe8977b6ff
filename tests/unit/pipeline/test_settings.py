from pathlib import Path

import pytest

from pipeline.errors import InvalidSettings
from pipeline.settings import ZONES, Settings


def test_defaults_use_the_embedded_store() -> None:
    """An empty environment means the embedded store, with a bucket for each zone."""
    settings = Settings.from_environ({})
    assert settings.uses_embedded_store
    assert [settings.zone_url(zone) for zone in ZONES] == [f"s3://safelight-{zone}" for zone in ZONES]


def test_one_url_holds_all_zones() -> None:
    """Under SAFELIGHT_STORE_URL every zone is a folder, whether or not the URL ends with a slash."""
    for url in ("s3://mine/somewhere", "s3://mine/somewhere/"):
        settings = Settings.from_environ({"SAFELIGHT_STORE_URL": url})
        assert settings.zone_url("models") == "s3://mine/somewhere/models"
        assert not settings.uses_embedded_store


def test_on_aws_its_own_region_counts() -> None:
    """AWS_REGION says where the buckets are, unless our own variable does, or the store is not AWS's."""
    aws = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2", "SAFELIGHT_STORE_URL": "s3://mine"}
    assert Settings.from_environ(aws).s3_region == "eu-west-1"
    assert Settings.from_environ({**aws, "AWS_REGION": ""}).s3_region == "eu-west-2"
    assert Settings.from_environ({**aws, "SAFELIGHT_S3_REGION": "eu-west-3"}).s3_region == "eu-west-3"
    assert Settings.from_environ({**aws, "SAFELIGHT_S3_ENDPOINT": "http://localhost:9000"}).s3_region == "us-east-1"


def test_a_zone_of_its_own_wins() -> None:
    """A zone's own URL wins over the common one."""
    environ = {"SAFELIGHT_STORE_URL": "s3://mine", "SAFELIGHT_MODELS_URL": "s3://theirs/models"}
    settings = Settings.from_environ(environ)
    assert settings.zone_url("models") == "s3://theirs/models"
    assert settings.zone_url("images") == "s3://mine/images"


def test_a_misspelled_variable_is_refused_with_the_right_one() -> None:
    """An unknown SAFELIGHT_ variable is an error that names the nearest one."""
    with pytest.raises(
        InvalidSettings, match="SAFELIGHT_MODLES_URL is not a setting; did you mean SAFELIGHT_MODELS_URL"
    ):
        Settings.from_environ({"SAFELIGHT_MODLES_URL": "s3://x"})


def test_the_servers_own_variables_are_not_the_pipelines() -> None:
    """SAFELIGHT_SERVING_ variables and foreign ones are left alone."""
    Settings.from_environ({"SAFELIGHT_SERVING_ANYTHING": "1", "HOME": "/root"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("THREADS", "0"), ("THREADS", "many"), ("DEVICE", "tpu"), ("INFERENCE_PORT", "70000"), ("STORE_PATIENCE_S", "-1")],
)
def test_a_bad_value_names_its_variable(name: str, value: str) -> None:
    """A value out of range is one sentence that begins with the variable's name."""
    with pytest.raises(InvalidSettings, match=f"^SAFELIGHT_{name}: "):
        Settings.from_environ({f"SAFELIGHT_{name}": value})


def test_an_empty_variable_means_the_default() -> None:
    """A variable that is set to nothing counts as not set."""
    assert Settings.from_environ({"SAFELIGHT_THREADS": ""}).threads == Settings().threads


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    """A …_FILE variable gives the file's content without its last line break."""
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t\n")
    settings = Settings.from_environ({"SAFELIGHT_S3_SECRET_ACCESS_KEY_FILE": str(secret)})
    assert settings.s3_secret_access_key is not None
    assert settings.s3_secret_access_key.get_secret_value() == "s3cr3t"


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    """A secret given by value and by file is an error, and so is a file that cannot be read."""
    given = {"SAFELIGHT_S3_ACCESS_KEY_ID": "a", "SAFELIGHT_S3_ACCESS_KEY_ID_FILE": str(tmp_path)}
    with pytest.raises(InvalidSettings, match="both set"):
        Settings.from_environ(given)
    with pytest.raises(InvalidSettings, match="cannot read"):
        Settings.from_environ({"SAFELIGHT_S3_ACCESS_KEY_ID_FILE": str(tmp_path / "absent")})


def test_secrets_are_not_shown() -> None:
    """Printing the settings does not print the secrets."""
    settings = Settings.from_environ({"SAFELIGHT_S3_SECRET_ACCESS_KEY": "s3cr3t"})
    assert "s3cr3t" not in repr(settings)
    assert "s3cr3t" not in str(settings.model_dump())


@pytest.mark.parametrize("endpoint", ["foo", "http://", "ftp://host", "http://host:9000/path"])
def test_an_endpoint_that_is_none_is_refused_by_its_name(endpoint: str) -> None:
    """An endpoint that no request can be sent to is refused before any is."""
    with pytest.raises(InvalidSettings, match="SAFELIGHT_S3_ENDPOINT"):
        Settings.from_environ({"SAFELIGHT_S3_ENDPOINT": endpoint})


@pytest.mark.parametrize("runner", ["threads", "processes", "tcp://dask-scheduler:8786", "tls://[::1]:8786"])
def test_who_packs_is_taken(runner: str) -> None:
    """Threads, processes, and the address of a Dask scheduler, also of one behind TLS."""
    assert Settings.from_environ({"SAFELIGHT_TASK_RUNNER": runner}).task_runner == runner


@pytest.mark.parametrize(
    "runner", ["dask", "thread", "dask-scheduler:8786", "http://host:8786", "tcp://host", "tcp://host:8786/status"]
)
def test_nobody_else_packs(runner: str) -> None:
    """Anything else is refused with what is possible."""
    with pytest.raises(InvalidSettings, match="SAFELIGHT_TASK_RUNNER: this is neither threads, nor processes, nor"):
        Settings.from_environ({"SAFELIGHT_TASK_RUNNER": runner})
