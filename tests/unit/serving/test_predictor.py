import numpy as np
import pytest
import tiny_models
from live_server import Registry

from pipeline import images, registry
from pipeline.errors import Corrupted, InvalidImage
from pipeline.onnx_model import OnnxModel
from serving.predictor import BATCH, LiveModel, predict, warm_up
from serving.uploads import Upload


@pytest.fixture
def live(models: Registry) -> LiveModel:
    """Version 1, loaded."""
    version = models.register(1)
    manifest = registry.read_manifest(models.models, version.model, version.version)
    return LiveModel(manifest, OnnxModel(registry.load_file(models.models, manifest, "model.onnx")))


def encoded(seed: int) -> Upload:
    """A PNG of the model's own size."""
    return Upload(f"{seed}.png", images.encode_png(tiny_models.picture(seed)))


def test_an_answer_is_the_models_own_distribution(live: LiveModel) -> None:
    """Best class first, every probability as the model gave it, and the versions that stand behind it."""
    probabilities = live.model.probabilities(tiny_models.picture(5)[None])[0]
    answer = predict(live, [encoded(5)], top_k=3)[0]
    order = np.argsort(-probabilities)
    assert [each.label for each in answer.top] == [live.manifest.classes[index] for index in order]
    assert [each.probability for each in answer.top] == pytest.approx(probabilities[order].tolist(), abs=1e-6)
    assert (answer.label, answer.probability) == (answer.top[0].label, answer.top[0].probability)
    assert answer.model_version == live.manifest.version
    assert answer.dataset_version == live.manifest.dataset.version


@pytest.mark.parametrize(("top_k", "classes"), [(1, 1), (2, 2), (9, 3)])
def test_an_answer_names_as_many_classes_as_asked(live: LiveModel, top_k: int, classes: int) -> None:
    """At most all of them."""
    assert len(predict(live, [encoded(5)], top_k)[0].top) == classes


def test_company_changes_no_answer(live: LiveModel) -> None:
    """An image gets the same answer alone and among more images than one batch holds, in the order sent."""
    sent = [encoded(seed) for seed in range(BATCH + 3)]
    together = predict(live, sent, 3)
    alone = [predict(live, [one], 3)[0] for one in sent]
    assert [answer.label for answer in together] == [answer.label for answer in alone]
    assert [answer.probability for answer in together] == pytest.approx(
        [answer.probability for answer in alone], abs=1e-6
    )


def test_a_bad_image_is_named(live: LiveModel) -> None:
    """Of several images, the sentence says which one cannot be used, in later batches too."""
    sent = [*(encoded(seed) for seed in range(BATCH)), Upload("x.png", b"text"), encoded(1)]
    with pytest.raises(InvalidImage, match=rf"^Image {BATCH + 1} of {BATCH + 2} \('x.png'\) cannot be used: "):
        predict(live, sent, 3)


def test_warming_up_takes_a_good_model(live: LiveModel) -> None:
    """A model that answers for every class, alone and in a batch, passes."""
    warm_up(live.model, live.manifest.pixels, 3)


def test_warming_up_refuses_a_model_of_other_classes(live: LiveModel) -> None:
    """A model whose output is not one probability for each class never goes live."""
    with pytest.raises(Corrupted, match="probabilities of its 4 classes"):
        warm_up(live.model, live.manifest.pixels, 4)
