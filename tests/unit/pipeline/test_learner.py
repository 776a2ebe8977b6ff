import math
import platform
import subprocess
import sys

import pytest
import small_training as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import learner, model
from pipeline.artifacts import PixelSpec, TrainConfig
from pipeline.errors import InvalidInput
from pipeline.learner import Learner, Plan


def pixels(side: int) -> PixelSpec:
    """Square grey images."""
    return PixelSpec(height=side, width=side, channels=1)


@given(
    images=st.integers(2, 2_000_000),
    batch_size=st.integers(2, 8192),
    epochs=st.none() | st.integers(1, 50),
    side=st.integers(8, 1024),
)
def test_plans(images: int, batch_size: int, epochs: int | None, side: int) -> None:
    """Whatever the dataset: no batch of one image, none larger than wished for or than memory bears."""
    work = learner.plan(TrainConfig(batch_size=batch_size, epochs=epochs), images, pixels(side))
    assert images // work.batches >= 2
    largest = math.ceil(images / work.batches)
    assert largest <= max(3, batch_size)
    assert largest <= max(3, learner.STEP_PIXELS // side**2)
    assert work.epochs == epochs or (epochs is None and work.steps >= learner.STEPS)


@pytest.mark.parametrize(
    ("images", "batches", "epochs"), [(60_000, 469, 12), (2_000, 16, 25), (400, 8, 50), (40, 3, 134), (2, 1, 400)]
)
def test_default_plans(images: int, batches: int, epochs: int) -> None:
    """By default large datasets are passed over twelve times, small ones until 400 steps are taken."""
    work = learner.plan(TrainConfig(batch_size=128), images, pixels(28))
    assert (work.batches, work.epochs) == (batches, epochs)


@pytest.mark.parametrize(("architecture", "epochs"), [("small_resnet", 12), ("resnet18", 5), ("mobilenet_v3_small", 5)])
def test_large_networks_take_fewer_passes(architecture: str, epochs: int) -> None:
    """How often a large dataset is passed over by default goes by the network's cost."""
    config = TrainConfig.model_validate({"architecture": architecture})
    assert learner.plan(config, 60_000, pixels(28)).epochs == epochs


@given(batches=st.integers(1, 50), epochs=st.integers(1, 50), peak=st.floats(0.01, 10))
def test_the_rate_rises_to_the_peak_and_falls_to_nothing(batches: int, epochs: int, peak: float) -> None:
    """The learning rate is always positive, never above the peak, rises first and then falls."""
    work = Plan(256 * batches, batches, epochs, peak)
    rates = [work.rate(step) for step in range(work.steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_starting_weights_are_trained_gently() -> None:
    """Unless a rate is given, starting weights learn at a tenth of the rate of fresh ones; rates go by the batch."""
    afresh, further = (
        learner.plan(TrainConfig(batch_size=128, starting_weights=start), 12_800, pixels(28))
        for start in (None, "file")
    )
    assert afresh.peak == pytest.approx(0.25)
    assert further.peak == pytest.approx(0.025)
    assert learner.plan(TrainConfig(batch_size=128, learning_rate=1), 12_800, pixels(28)).peak == pytest.approx(0.5)


def fresh(seed: int = 0, **options: object) -> Learner:
    """A learner of three classes on the CPU."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = model.build("small_resnet", 3, small.PIXELS)
    return Learner(net, TrainConfig.model_validate(options), small.CPU)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve images and their labels."""
    labels = torch.arange(12) % 3
    return torch.from_numpy(small.pictures(labels.numpy())), labels


def test_a_step_changes_weights_and_counts() -> None:
    """One step moves every parameter; loss and right predictions are summed over the batch."""
    subject = fresh()
    before = [parameter.detach().clone() for parameter in subject.model.parameters()]
    with torch.random.fork_rng([]):
        sums = subject.learn(*batch(), rate=0.1, step=0)
    assert sums.shape == (2,)
    assert 0 <= sums[1] <= 12
    moved = [not torch.equal(old, new) for old, new in zip(before, subject.model.parameters(), strict=True)]
    assert all(moved)


def test_judging_changes_nothing() -> None:
    """Judging leaves weights and batch statistics alone."""
    subject = fresh()
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    subject.judge(*batch())
    assert small.equal(before, subject.model.state_dict())


@settings(max_examples=10)
@given(first=st.integers(0, 4), then=st.integers(1, 4))
def test_restored_learners_go_on_alike(first: int, then: int) -> None:
    """A learner restored into another one, made of other weights, takes the same further steps bit for bit."""
    subject = fresh()
    with torch.random.fork_rng([]):
        for step in range(first):
            subject.learn(*batch(), rate=0.1, step=step)
        saved = {
            group: {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in members.items()}
            for group, members in subject.tensors().items()
        }
        other = fresh(seed=1)
        other.restore(saved, subject.settings())
        for step in range(first, first + then):
            subject.learn(*batch(), rate=0.1, step=step)
            other.learn(*batch(), rate=0.1, step=step)
    assert small.equal(subject.model.state_dict(), other.model.state_dict())


def test_norms_and_biases_do_not_decay() -> None:
    """With a zero gradient, weight decay shrinks kernels and matrices alone."""
    subject = fresh(weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in subject.model.named_parameters()}
    for parameter in subject.model.parameters():
        parameter.register_hook(torch.zeros_like)
    with torch.random.fork_rng([]):
        subject.learn(*batch(), rate=0.1, step=0)
    shrunk = {name for name, now in subject.model.named_parameters() if not torch.equal(now, before[name])}
    assert shrunk == {name for name, tensor in before.items() if tensor.ndim > 1}


def test_devices() -> None:
    """``auto`` finds a device, ``cpu`` is always there, and one that is not is refused with a hint."""
    assert learner.choose_device("cpu") == small.CPU
    assert learner.choose_device("auto").type in {"cpu", "cuda", "mps"}
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="'cuda' is not available on this machine: choose auto or"):
            learner.choose_device("cuda")


def test_no_mixed_precision_on_the_cpu() -> None:
    """On a CPU everything is computed in float32."""
    assert fresh().precision == "float32"


CHURN = """
import resource, sys
from pipeline import learner
kept = sys.argv[1] == "kept" and learner.keep_freed_memory()
faults = []
for _ in range(20):
    blocks = [b"x" * (9 << 20) for _ in range(4)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(kept, faults[-1] - faults[4])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by themselves")
def test_freed_memory_is_kept() -> None:
    """What is freed and needed again, step by step, is not handed back to the system and fetched anew."""
    faults = {}
    for wish in ("kept", "as it comes"):
        command = [sys.executable, "-c", CHURN, wish]
        said, faults[wish] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert said == str(wish == "kept")
    assert int(faults["kept"]) < int(faults["as it comes"]) / 10


def test_computed_in_parts_a_step_is_the_same_step() -> None:
    """Gradients of parts of a batch add up to those of the batch, where no batch statistics matter."""
    moved = []
    for images_at_once in (None, 5, 2):
        net = model.Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(small.SIDE**2, 3)), 1, 1)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            torch.nn.init.normal_(net.network[1].weight)
            torch.nn.init.zeros_(net.network[1].bias)
            subject = Learner(net, TrainConfig(), small.CPU, images_at_once=images_at_once)
            sums = subject.learn(*batch(), rate=0.1, step=0)
        moved.append((sums, net.network[1].weight.detach().clone()))
    for sums, weight in moved[1:]:
        torch.testing.assert_close(sums, moved[0][0])
        torch.testing.assert_close(weight, moved[0][1])
