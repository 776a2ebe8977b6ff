import torch

from pipeline import exactness


def test_the_environment_names_what_matters() -> None:
    """Libraries, machine, threads and precision are recorded as text, none of it empty."""
    found = exactness.environment(torch.device("cpu"), "float32")
    assert found["torch"] == torch.__version__
    assert found["threads"] == str(torch.get_num_threads())
    assert {"machine", "processor", "device", "precision", "python", "torchvision"} < found.keys()
    assert all(found.values())


def test_a_gpu_is_never_exact() -> None:
    """A run resumed on a GPU is inexact even where nothing changed."""
    cpu, gpu = {"device": "cpu", "torch": "2"}, {"device": "NVIDIA H100", "torch": "2"}
    assert exactness.doubts_of(cpu, cpu) == []
    assert exactness.doubts_of(gpu, gpu) == ["NVIDIA H100 does not repeat itself bit for bit"]
    assert exactness.doubts_of(cpu, gpu | {"torch": "3"})[1] == "torch was 2 and is 3"


def test_another_number_of_processes_is_doubtful() -> None:
    """What was recorded before processes were counted was of one."""
    then = {"device": "cpu"}
    assert exactness.doubts_of(then, {"device": "cpu", "processes": "1", "images at once": "all"}) == []
    assert exactness.doubts_of(then, {"device": "cpu", "processes": "2"}) == ["processes was 1 and is 2"]
