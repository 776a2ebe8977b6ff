import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import model
from pipeline.artifacts import PixelSpec
from pipeline.errors import InvalidInput

ARCHITECTURES = ["small_resnet", "resnet18", "mobilenet_v3_small"]


def spec(side: int = 32, channels: int = 3, width: int | None = None) -> PixelSpec:
    """A specification of square images, or of ``width`` columns."""
    return PixelSpec.model_validate({"height": side, "width": width or side, "channels": channels})


def random_pixels(count: int, pixels: PixelSpec) -> torch.Tensor:
    """The same noise at each call."""
    shape = (count, pixels.height, pixels.width, pixels.channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_of_grey_and_rgb(architecture: str, channels: int) -> None:
    """Every architecture turns uint8 NHWC pixels, grey or RGB, into one float32 logit per class."""
    pixels = spec(channels=channels)
    logits = model.build(architecture, 5, pixels).eval()(random_pixels(2, pixels))
    assert logits.shape == (2, 5)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@settings(max_examples=15)
@given(height=st.integers(8, 96), width=st.integers(8, 96), classes=st.integers(2, 500))
def test_small_resnet_takes_any_shape(height: int, width: int, classes: int) -> None:
    """small_resnet works for any size, square or not, and any number of classes, and learns from two images."""
    pixels = spec(height, width=width)
    net = model.build("small_resnet", classes, pixels)
    net(random_pixels(2, pixels)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_small_resnet_is_small() -> None:
    """The default for 28 x 28 grey images has about 73,000 parameters; twice the width has four times as many."""
    sizes = [
        sum(
            parameter.numel() for parameter in model.build("small_resnet", 10, spec(28, channels=1), width).parameters()
        )
        for width in (None, 16, 32)
    ]
    assert sizes[0] == sizes[1]
    assert 70_000 < sizes[0] < 80_000
    assert 3.8 < sizes[2] / sizes[1] < 4


def test_only_small_resnet_has_a_width() -> None:
    """A width for a network that has none to choose is refused in a sentence, not ignored."""
    with pytest.raises(InvalidInput, match="width: resnet18 has a fixed width"):
        model.build("resnet18", 2, spec(), 32)


def test_normalisation_is_the_first_layer() -> None:
    """Scaled pixels reach the network with the mean subtracted and divided by the deviation, channel by channel."""
    net = model.Classifier(torch.nn.Identity(), 3, 3)
    model.set_normalisation(net, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 1.0]))
    pixels = random_pixels(2, spec(8))
    expected = (pixels / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 1.0])
    torch.testing.assert_close(net(pixels), expected.permute(0, 3, 1, 2))


def test_a_channel_without_contrast_is_not_divided_by_zero() -> None:
    """A dataset whose images are all black trains on finite numbers."""
    net = model.build("small_resnet", 2, spec(8, channels=1))
    model.set_normalisation(net, torch.zeros(1), torch.zeros(1))
    assert net(torch.zeros(2, 8, 8, 1, dtype=torch.uint8)).isfinite().all()


def test_unknown_architecture() -> None:
    """An unknown architecture is refused with the names of the known ones."""
    with pytest.raises(InvalidInput, match="small_resnet, resnet18 or mobilenet_v3_small"):
        model.build("vgg", 2, spec())


def test_fresh_weights_depend_on_the_generator_alone() -> None:
    """The same seed builds the same weights."""

    def built() -> dict[str, torch.Tensor]:
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            return model.build("mobilenet_v3_small", 2, spec()).state_dict()

    first, second = built(), built()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_statistics_follow_a_short_training(architecture: str) -> None:
    """No layer averages its statistics over so many steps that a short training ends with wrong ones."""
    modules = model.build(architecture, 2, spec()).modules()
    assert {module.momentum for module in modules if isinstance(module, torch.nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_starting_weights_are_copied(architecture: str) -> None:
    """Weights of the same model make a model that answers alike, normalisation included."""
    pixels = spec()
    source, target = model.build(architecture, 4, pixels), model.build(architecture, 4, pixels)
    model.set_normalisation(source, torch.full((3,), 0.2), torch.full((3,), 0.7))
    model.load_starting_weights(target, source.state_dict(), "weights.safetensors")
    images = random_pixels(2, pixels)
    assert torch.equal(source.eval()(images), target.eval()(images))


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_names_are_understood(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    """Weights with torchvision's own names fit; their head of 1000 classes starts afresh, and the log says so."""
    source = model.build(architecture, 1000, spec())
    weights = {name.removeprefix("network."): tensor for name, tensor in source.network.state_dict().items()}
    target = model.build(architecture, 3, spec(channels=1))
    with caplog.at_level(logging.INFO):
        model.load_starting_weights(target, weights, "imagenet.safetensors")
    assert "imagenet.safetensors was made for other classes" in caplog.text
    own = target.state_dict()
    same = [name for name in own if name in source.state_dict() and torch.equal(own[name], source.state_dict()[name])]
    assert len(own) - len(same) == 4  # weight and bias of the head, mean and deviation of grey


def test_mismatch_names_the_tensor() -> None:
    """Weights of another architecture are refused, and the first tensor that does not fit is named."""
    other = model.build("resnet18", 3, spec()).state_dict()
    with pytest.raises(InvalidInput, match=r"file\.safetensors does not fit this model: tensor network\.\S+ is"):
        model.load_starting_weights(model.build("small_resnet", 3, spec()), other, "file.safetensors")


def test_missing_tensor_is_named() -> None:
    """A file that lacks a layer is refused, and the layer is named."""
    weights = model.build("small_resnet", 3, spec()).state_dict()
    del weights["network.stage1.conv2.0.weight"]
    with pytest.raises(InvalidInput, match=r"network\.stage1\.conv2\.0\.weight is missing there and 32 x 32 x 3 x 3"):
        model.load_starting_weights(model.build("small_resnet", 3, spec()), weights, "file")


def test_starting_weights_must_be_finite() -> None:
    """A file with NaN is refused before training, and the tensor is named."""
    weights = model.build("small_resnet", 3, spec()).state_dict()
    weights["network.stem.0.1.weight"][0] = torch.nan
    with pytest.raises(InvalidInput, match=r"network\.stem\.0\.1\.weight holds NaN"):
        model.load_starting_weights(model.build("small_resnet", 3, spec()), weights, "file")


@pytest.mark.parametrize("channels", [1, 3])
def test_exports_with_a_free_batch(channels: int) -> None:
    """torch.export takes the model with a batch of any size, uint8 input included."""
    pixels = spec(28, channels=channels)
    net = model.build("small_resnet", 3, pixels).eval()
    images = random_pixels(7, pixels)
    program = torch.export.export(net, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images), net(images))
