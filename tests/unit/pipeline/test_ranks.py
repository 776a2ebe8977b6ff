import pytest
import torch

from pipeline import ranks
from pipeline.errors import InvalidInput, RankLost
from pipeline.ranks import ALONE, Ranks


def test_alone_without_torchrun() -> None:
    """Without torchrun's variables, or with one process, nobody is waited for and nothing is shared."""
    for environ in ({}, {"WORLD_SIZE": "1", "RANK": "0"}):
        with ranks.joined(environ) as group:
            assert group == ALONE
            assert group.first
            assert not group.several
            assert group.part(7) == slice(0, 7)
            assert group.agree([True, False]) == [True, False]
            assert group.say("word") == "word"
            assert torch.equal(group.summed(torch.ones(2)), torch.ones(2))


def test_more_processes_than_gpus() -> None:
    """A process without a GPU of its own says so, and how to go on; on a CPU there is no such limit."""
    last = Ranks(1, 2, local=torch.cuda.device_count())
    assert last.device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(InvalidInput, match=r"has no GPU of its own, .* or set SAFELIGHT_DEVICE=cpu"):
        last.device(torch.device("cuda"))


def test_others_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the others never answer, the first rank leaves with a sentence after the time it was given."""
    environ = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(RankLost, match=r"Process 1 of 2 stops, .* did not answer for 1 s"),
        ranks.joined(environ, silence_s=1),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[/x/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:9", True),
        ("Application timeout caused pair closure", True),
        ("NCCL error: unhandled system error", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_lost_rank_is_told_from_a_mistake(text: str, lost: bool) -> None:
    """What gloo and NCCL raise is known by what it speaks of; an error of a computation stays what it is."""
    assert ranks.is_of_network(RuntimeError(text)) == lost


def test_half_of_the_variables() -> None:
    """A number of processes without the rest of what torchrun sets is refused in a sentence."""
    with (
        pytest.raises(InvalidInput, match="WORLD_SIZE is 2, but MASTER_ADDR is not set"),
        ranks.joined({"WORLD_SIZE": "2", "RANK": "0"}),
    ):
        pass
