import sys

import pytest
from pydantic import ValidationError

from pipeline import cli, console
from pipeline.artifacts import PrepareConfig, TrainConfig
from pipeline.errors import NotFound, StoreUnavailable


def test_a_mistake_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A person's mistake gives its own sentence and exit status 2."""
    assert console.exit_status(NotFound("There is no dataset 'cats'.")) == console.EXIT_MISTAKE
    assert capsys.readouterr().err == "safelight: There is no dataset 'cats'.\n"


def test_a_fault_of_the_surroundings_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    """A store that does not answer is no mistake of the person."""
    assert console.exit_status(StoreUnavailable("The store does not answer.")) == console.EXIT_FAULT
    assert "does not answer" in capsys.readouterr().err


def test_a_bad_value_names_its_field(capsys: pytest.CaptureFixture[str]) -> None:
    """A record's refusal names the field and what was given."""
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate({"epochs": 0})
    assert console.exit_status(caught.value) == console.EXIT_MISTAKE
    said = capsys.readouterr().err
    assert said.startswith("safelight: epochs: ")
    assert said.count("\n") == 1


def test_a_mistake_of_the_program_is_not_hidden() -> None:
    """An error that nobody foresaw goes on as it is, with its traceback."""
    with pytest.raises(ZeroDivisionError):
        console.exit_status(ZeroDivisionError())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["train"], "dataset"),
        (["train", "x", "--epochs", "0"], "--epochs"),
        (["prepare", "x", "--size", "abc"], "--size"),
        (["prepare", "x", "--size", "²"], "--size"),
        (["prepare", "x", "--size", "4"], "size: Input should be greater than or equal to 8"),
        (["import", " "], "the folder's name is empty"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong with a command line, one line names it, and the status is 2."""
    monkeypatch.setattr(sys, "argv", ["safelight", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == console.EXIT_MISTAKE
    assert said.err.startswith("safelight: ")
    assert named in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_field_of_several_types_is_named_plainly() -> None:
    """Where a number is out of range, the sentence speaks of the range, not of the other type that it could be."""
    with pytest.raises(ValidationError) as caught:
        PrepareConfig.model_validate({"size": 4})
    assert console.first_problem(caught.value) == "size: Input should be greater than or equal to 8 (got 4)."
