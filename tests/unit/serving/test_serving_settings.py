from pathlib import Path

import pytest

from pipeline.errors import InvalidSettings
from serving.settings import ServingSettings

MODEL = {"SAFELIGHT_SERVING_MODEL": "cats"}
VERSION = "20261122T093000Z-1f3a5c7e"


def test_only_the_model_has_to_be_said() -> None:
    """With a model's name alone, the server follows its champion, on port 8080 of this machine alone."""
    settings = ServingSettings.from_environ(MODEL | {"PATH": "/bin", "SAFELIGHT_HOME": "/x"})
    assert (settings.model, settings.alias, settings.version) == ("cats", "champion", None)
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


def test_everything_can_be_set() -> None:
    """Each documented variable arrives."""
    names = {"ALIAS": "challenger", "HOST": "::1", "PORT": "81", "POLL_S": "0.5", "TOP_K": "3", "MAX_BODY_MB": "7"}
    names |= {"THREADS": "2", "PROCESSES": "3", "QUEUE_MS": "250", "CACHE": "/var/cache/x", "DRAIN_S": "1.5"}
    names |= {"LOG": "off", "LOG_FLUSH_S": "10", "LOG_IMAGES": "on"}
    names |= {"API_KEYS_FILE": "/k", "ALLOWED_ORIGINS": "https://a.example, http://b:1", "MAX_CONNECTIONS": "9"}
    environ = MODEL | {f"SAFELIGHT_SERVING_{name}": value for name, value in names.items()}
    settings = ServingSettings.from_environ(environ)
    assert settings.model_dump() == {
        "model": "cats",
        "alias": "challenger",
        "version": None,
        "host": "::1",
        "port": 81,
        "poll_s": 0.5,
        "top_k": 3,
        "max_body_mb": 7,
        "api_keys": None,
        "api_keys_file": Path("/k"),
        "allowed_origins": ("https://a.example", "http://b:1"),
        "max_connections": 9,
        "threads": 2,
        "queue_ms": 250,
        "processes": 3,
        "cache": Path("/var/cache/x"),
        "log": False,
        "log_flush_s": 10,
        "log_images": True,
        "drain_s": 1.5,
    }


def test_a_version_can_be_pinned() -> None:
    """A version takes the place of the alias."""
    assert ServingSettings.from_environ(MODEL | {"SAFELIGHT_SERVING_VERSION": VERSION}).version == VERSION


def test_the_platforms_port_counts_unless_ours_is_set() -> None:
    """$PORT is honoured, and our own variable wins over it."""
    assert ServingSettings.from_environ(MODEL | {"PORT": "9"}).port == 9
    assert ServingSettings.from_environ(MODEL | {"PORT": "9", "SAFELIGHT_SERVING_PORT": "10"}).port == 10


def test_an_empty_variable_is_not_set() -> None:
    """Compose files pass empty variables on; they mean the default."""
    assert ServingSettings.from_environ(MODEL | {"SAFELIGHT_SERVING_PORT": "", "PORT": ""}).port == 8080


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({}, "SAFELIGHT_SERVING_MODEL is not set"),
        ({"MODEL": "Cats!"}, "SAFELIGHT_SERVING_MODEL: String should match"),
        (
            {"MODEL": "cats", "MAX_BODY_MG": "3"},
            "MAX_BODY_MG is not a setting; did you mean SAFELIGHT_SERVING_MAX_BODY",
        ),
        ({"MODEL": "cats", "ZZZZZZZ": "3"}, "SAFELIGHT_SERVING_ZZZZZZZ is not a setting."),
        ({"MODEL": "cats", "PORT": "eighty"}, "SAFELIGHT_SERVING_PORT: Input should be a valid integer"),
        ({"MODEL": "cats", "PORT": "65536"}, "SAFELIGHT_SERVING_PORT: Input should be less than"),
        ({"MODEL": "cats", "API_KEYS": "on"}, "SAFELIGHT_SERVING_API_KEYS: Input should be 'off'"),
        ({"MODEL": "cats", "API_KEYS": "off", "API_KEYS_FILE": "/k"}, "set one of the two"),
        ({"MODEL": "cats", "ALLOWED_ORIGINS": "shop.example"}, "SAFELIGHT_SERVING_ALLOWED_ORIGINS: String should"),
        ({"MODEL": "cats", "ALLOWED_ORIGINS": "https://a.example/b"}, "SAFELIGHT_SERVING_ALLOWED_ORIGINS: String"),
        ({"MODEL": "cats", "POLL_S": "0"}, "SAFELIGHT_SERVING_POLL_S: "),
        ({"MODEL": "cats", "VERSION": "3"}, "SAFELIGHT_SERVING_VERSION: String should match"),
        ({"MODEL": "cats", "VERSION": VERSION, "ALIAS": "champion"}, "SAFELIGHT_SERVING_VERSION: a server follows"),
    ],
)
def test_a_bad_setting_is_one_sentence_that_names_it(environ: dict[str, str], sentence: str) -> None:
    """Each mistake raises InvalidSettings, whose text names the variable."""
    with pytest.raises(InvalidSettings) as caught:
        ServingSettings.from_environ({f"SAFELIGHT_SERVING_{name}": value for name, value in environ.items()})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_port_of_the_platform_is_named_as_such() -> None:
    """Where $PORT is wrong, the sentence speaks of $PORT."""
    with pytest.raises(InvalidSettings, match=r"^PORT: "):
        ServingSettings.from_environ(MODEL | {"PORT": "x"})


@pytest.mark.parametrize(
    ("host", "beyond"),
    [
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),  # noqa: S104 - what is tested
        ("::", True),
        ("192.0.2.7", True),
        ("myhost", True),
    ],
)
def test_beyond_this_machine_somebody_must_say_who_may_ask(host: str, beyond: bool) -> None:
    """An address that others reach needs a file of keys, or the word that none is needed."""
    environ = MODEL | {"SAFELIGHT_SERVING_HOST": host}
    assert ServingSettings.from_environ(environ).must_say_who_may_ask == beyond
    for said in ({"SAFELIGHT_SERVING_API_KEYS": "off"}, {"SAFELIGHT_SERVING_API_KEYS_FILE": "/keys"}):
        assert not ServingSettings.from_environ(environ | said).must_say_who_may_ask
