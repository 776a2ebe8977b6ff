"""What flows ask of the work pool, read from files."""

from pathlib import Path

import pytest

from pipeline import prefect_init
from pipeline.errors import InvalidSettings
from pipeline.settings import Settings


def resources(folder: Path) -> dict[str, dict[str, object]]:
    """What is read from a folder."""
    settings = Settings(work_pool="kubernetes", flow_resources=folder)
    return prefect_init.resources_of(settings, prefect_init.template_of(settings))


def test_a_flow_has_the_resources_of_its_file(tmp_path: Path) -> None:
    """Each file is of the flow that it is named as; what a mounted ConfigMap has beside them is left alone."""
    (tmp_path / "..2026_11_22").mkdir()
    (tmp_path / "..2026_11_22" / "train.json").write_text('{"gpus": 1, "memory": "16Gi"}')
    (tmp_path / "..data").symlink_to("..2026_11_22")
    (tmp_path / "train.json").symlink_to("..data/train.json")
    assert resources(tmp_path) == {"train": {"gpus": 1, "memory": "16Gi"}}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("trian.json", "{}", "trian.json is of no flow: there are"),
        ("train.json", "{", "train.json is not what the form"),
        ("train.json", "[]", "train.json is not what the form"),
        ("train.json", '{"gpus": -1}', "train.json is not what the form .*-1"),
        ("train.json", '{"memory": "lots"}', "train.json is not what the form .*lots"),
        ("train.json", '{"gpu": 1}', "train.json is not what the form .*gpu"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    """It names the file and what is wrong in it."""
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidSettings, match=said) as caught:
        resources(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_missing_is_not_an_empty_one(tmp_path: Path) -> None:
    """A mistyped folder would otherwise leave every training without its GPU."""
    with pytest.raises(InvalidSettings, match="is no folder"):
        resources(tmp_path / "none")
