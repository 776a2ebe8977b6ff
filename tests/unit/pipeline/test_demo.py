from pathlib import Path

from pipeline import demo
from pipeline.settings import Settings


def test_cleaning_removes_only_our_own_folders(tmp_path: Path) -> None:
    """What a person keeps in the home beside our folders survives `make clean`."""
    for name in (*demo.FOLDERS, "holiday"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    demo.clean(Settings(home=tmp_path), confirm=lambda _: True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday"]


def test_cleaning_removes_a_home_of_our_own(tmp_path: Path) -> None:
    """A home that holds nothing else is gone afterwards."""
    home = tmp_path / "home"
    (home / "store").mkdir(parents=True)
    demo.clean(Settings(home=home), confirm=lambda _: True)
    assert not home.exists()


def test_cleaning_asks_first(tmp_path: Path) -> None:
    """Without a yes nothing is removed, and the question names the folder."""
    (tmp_path / "store").mkdir()
    questions: list[str] = []
    demo.clean(Settings(home=tmp_path), confirm=lambda question: bool(questions.append(question)))
    assert (tmp_path / "store").exists()
    assert str(tmp_path) in questions[0]
