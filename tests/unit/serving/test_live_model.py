import numpy as np
import pytest
import tiny_models
from live_server import Registry
from serving_parts import live_of

from pipeline.errors import Corrupted
from serving.live_model import LARGEST_BATCH, LiveModel, best_of, warm_up

SLOW = tiny_models.slow_onnx(tiny_models.DATASET, 1)


def test_a_good_model_is_measured(models: Registry) -> None:
    """A small model is computed by the event loop, in batches of many."""
    live = live_of(models, 1)
    assert live.inline
    assert live.wide is None
    assert live.image_s > 0
    assert live.batch == LARGEST_BATCH


def test_a_slow_model_is_loaded_for_its_share_and_for_all_cores(models: Registry) -> None:
    """It is not for the event loop; with two of four cores there are two of it, which say the same."""
    live = live_of(models, 1, onnx_file=SLOW, share=2, cores=4)
    assert not live.inline
    assert live.wide is not None
    pixels = tiny_models.picture(5)[None]
    np.testing.assert_allclose(live.wide.probabilities(pixels), live.model.probabilities(pixels), atol=1e-6)


def test_a_slow_model_of_a_single_process_is_loaded_once(models: Registry) -> None:
    """Where nobody shares the cores there is nothing to choose."""
    assert live_of(models, 1, onnx_file=SLOW, share=4, cores=4).wide is None


@pytest.mark.parametrize(
    ("image_s", "inline", "batch"), [(1e-7, True, 64), (1e-4, True, 40), (0.02, False, 2), (1.0, False, 1)]
)
def test_a_batch_takes_a_bounded_time(models: Registry, image_s: float, inline: bool, batch: int) -> None:
    """The slower the model, the fewer images at once, and always one."""
    loaded = live_of(models, 1)
    assert LiveModel(loaded.manifest, loaded.model, image_s=image_s, inline=inline).batch == batch


def test_warming_up_refuses_a_model_of_other_classes(models: Registry) -> None:
    """A model whose output is not one probability for each class never goes live."""
    live = live_of(models, 1)
    with pytest.raises(Corrupted, match="probabilities of its 4 classes"):
        warm_up(live.model, live.manifest.pixels, 4, 1)


def test_the_best_come_first_and_ties_keep_their_order() -> None:
    """As many classes as asked for, or all of them."""
    rows = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]], np.float32)
    assert best_of(rows, 2) == ([[1, 2], [0, 2]], [[0.5, 0.3], [0.4, 0.4]])
    assert best_of(rows, 9)[0] == [[1, 2, 0], [0, 2, 1]]
