import logging
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import export, model
from pipeline.artifacts import PixelSpec
from pipeline.errors import ExportMismatch
from pipeline.export import Probabilities
from pipeline.onnx_model import OnnxModel
from pipeline.progress import Progress

GREY = PixelSpec(height=12, width=10, channels=1)


@cache
def network(architecture: str = "small_resnet", seed: int = 3, spec: PixelSpec = GREY) -> Probabilities:
    """A network of five classes with random weights, and with statistics in its norms as if it had been trained."""
    torch.manual_seed(seed)
    made = model.build(architecture, 5, spec)
    made.train()
    with torch.no_grad():
        for _ in range(3):
            made(torch.randint(0, 256, (16, spec.height, spec.width, spec.channels), dtype=torch.uint8))
    return Probabilities(made).eval()


@cache
def exported(seed: int = 3) -> bytes:
    """The small network as an ONNX file."""
    return export.to_onnx(network(seed=seed), GREY)


def images(number: int, spec: PixelSpec = GREY) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(9).integers(0, 256, (number, spec.height, spec.width, spec.channels), dtype=np.uint8)


@pytest.mark.parametrize("number", [1, 2, 7, 257])
def test_any_batch_size_gives_torchs_probabilities(number: int) -> None:
    """The batch size is free, although the graph was traced with two images."""
    pixels = images(number)
    with torch.inference_mode():
        expected = network()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(OnnxModel(exported()).probabilities(pixels), expected, atol=1e-6)


@pytest.mark.parametrize(("architecture", "channels"), [("resnet18", 1), ("mobilenet_v3_small", 3)])
def test_every_architecture_answers_like_torch(architecture: str, channels: int) -> None:
    """The networks of torchvision too become one file, for grey and for RGB images."""
    spec = PixelSpec(height=32, width=40, channels=channels)
    data = export.to_onnx(network(architecture, spec=spec), spec)
    assert export.prove_parity(network(architecture, spec=spec), data, images(40, spec)) <= 1e-5


def test_the_same_weights_give_the_same_bytes() -> None:
    """An export repeated is byte for byte the same: a model version's id does not depend on when it was made."""
    assert export.to_onnx(network(), GREY) == exported()
    assert exported() != exported(seed=4)


def test_the_file_tells_nothing_of_the_machine() -> None:
    """No comment, no metadata, no path and no external file is in the graph; its signature and operators are stated."""
    graph = onnx.load_from_string(exported())
    onnx.checker.check_model(graph, full_check=True)
    text = str(graph.graph.node) + str(graph.graph.input) + str(graph.graph.output)
    assert "metadata_props" not in str(graph)
    assert "doc_string" not in str(graph)
    assert not [trace for trace in (".py", "site-packages", "/home", "/tmp", "/work") if trace in text]  # noqa: S108
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", export.OPSET)]
    assert not [each for each in graph.graph.initializer if each.data_location]


def test_exporting_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed or logged by the libraries underneath, even where a program logs everything."""
    records: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = records.append  # type: ignore[method-assign]
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(listener)
    root.setLevel(logging.INFO)
    try:
        export.to_onnx(network(), GREY)
    finally:
        root.removeHandler(listener)
        root.setLevel(level)
    assert capfd.readouterr() == ("", "")
    assert records == []


def test_another_networks_file_is_a_mismatch() -> None:
    """A file that answers otherwise than torch is refused, and the sentence says how often."""
    with pytest.raises(ExportMismatch, match=r"puts \d+ of \d+ test images into another class"):
        export.prove_parity(network(), exported(seed=5), images(50))


def test_an_answer_that_is_not_a_number_is_a_mismatch() -> None:
    """Weights that give NaN are never called equal."""
    torch.manual_seed(0)
    broken = model.build("small_resnet", 5, GREY)
    with torch.no_grad():
        broken.state_dict()["network.head.weight"].fill_(torch.nan)
    with pytest.raises(ExportMismatch, match="NaN"):
        export.prove_parity(Probabilities(broken).eval(), exported(), images(5))


class Nudged(torch.nn.Module):
    """The small network with a little probability moved from its best class to its second."""

    def __init__(self, moved: float) -> None:
        super().__init__()
        self.moved = moved

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Probabilities like the network's, nudged."""
        answer: torch.Tensor = network()(pixels)
        best = answer.topk(2, dim=1).indices
        return answer.scatter_add(1, best, torch.tensor([[-self.moved, self.moved]]).expand(len(answer), 2))


@pytest.mark.parametrize(("moved", "fits"), [(0.5e-4, True), (1.5e-4, False)])
def test_the_bound_of_the_difference_is_kept(moved: float, fits: bool) -> None:
    """Half of the bound passes and is reported; one and a half times the bound does not pass."""
    if fits:
        assert export.prove_parity(Nudged(moved), exported(), images(20)) == pytest.approx(moved, rel=0.05)
    else:
        with pytest.raises(ExportMismatch, match=r"by up to 1\.5e-04; 1e-04 is allowed"):
            export.prove_parity(Nudged(moved), exported(), images(20))


class Fixed(torch.nn.Module):
    """Answers the same whatever it sees."""

    def __init__(self, *answer: float) -> None:
        super().__init__()
        self.answer = torch.tensor([answer])
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The one answer, for each image."""
        return self.answer + 0 * pixels.float().mean(dim=(1, 2, 3))[:, None]


def test_another_best_class_is_a_mismatch_only_where_torch_is_clear() -> None:
    """Two classes within 2e-4 may swap their places; where one leads by more, they may not."""
    spec = PixelSpec(height=8, width=8, channels=1)
    other = export.to_onnx(Fixed(0.49995, 0.50005), spec)
    assert export.prove_parity(Fixed(0.50004, 0.49996), other, images(3, spec)) == pytest.approx(9e-5, rel=0.01)
    with pytest.raises(ExportMismatch, match="puts 1 of 1 test images into another class"):
        export.prove_parity(Fixed(0.50015, 0.49985), other, images(3, spec))


@pytest.mark.parametrize("number", [1, 2, 36, 37, 38, 300, 900])
def test_every_image_is_compared_once(number: int) -> None:
    """Batches of one, odd and large sizes cover all images, however many there are."""
    told: list[Progress] = []
    export.prove_parity(network(), exported(), images(number), told.append)
    ends = [progress.done for progress in told]
    assert ends[0] == 1
    assert ends[-1] == number
    assert ends == sorted(set(ends))
    assert {progress.total for progress in told} == {number}


@given(st.integers(1, 10_000), st.integers(1, 3_000))
def test_compared_images_are_spread_over_the_split(number: int, at_most: int) -> None:
    """No image is taken twice; the first and the last are among them; gaps between them are even."""
    taken = export.spread(number, at_most)
    assert len(taken) == min(number, at_most)
    assert taken[0] == 0
    assert len(taken) == 1 or taken[-1] == number - 1
    gaps = np.diff(taken)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
