import pytest

from serving.entry import predictions_zone

MODELS = {"SAFELIGHT_MODELS_URL": "s3://theirs/models"}


@pytest.mark.parametrize(
    ("environ", "wanted", "url"),
    [
        (MODELS, None, None),
        (MODELS, True, "s3://safelight-predictions"),
        (MODELS | {"SAFELIGHT_PREDICTIONS_URL": "s3://theirs/predictions"}, None, "s3://theirs/predictions"),
        ({"SAFELIGHT_STORE_URL": "s3://theirs"}, None, "s3://theirs/predictions"),
        ({"SAFELIGHT_S3_ENDPOINT": "http://127.0.0.1:1"}, None, "s3://safelight-predictions"),
        ({"SAFELIGHT_S3_ENDPOINT": "http://127.0.0.1:1"}, False, None),
    ],
)
def test_predictions_are_logged_where_it_is_said_where(
    environ: dict[str, str], wanted: bool | None, url: str | None
) -> None:
    """To a bucket whose name is ours only on a store that is ours too, unless somebody wants it."""
    zone = predictions_zone(environ, wanted)
    assert (zone and zone.url) == url
