"""Answers as the JSON that ``schemas.Prediction`` and ``schemas.Predictions`` describe; the bytes of both paths."""

from typing import Any

import orjson

from serving.live_model import Answers


def json_of(answers: Answers, request_id: str) -> bytes:
    """One prediction for one image, a list of them for several."""
    found = predictions(answers, request_id)
    return orjson.dumps(found[0] if len(found) == 1 else {"predictions": found})


def predictions(answers: Answers, request_id: str) -> list[dict[str, Any]]:
    """A prediction for each image, as ``schemas.Prediction`` has it."""
    manifest = answers.live.manifest
    classes = manifest.classes
    return [
        {
            "label": classes[indexes[0]],
            "probability": shown[0],
            "top": [
                {"label": classes[index], "probability": value} for index, value in zip(indexes, shown, strict=True)
            ],
            "model": manifest.model,
            "model_version": manifest.version,
            "dataset_version": manifest.dataset.version,
            "role": answers.role,
            "request_id": request_id,
        }
        for indexes, shown in zip(answers.best, answers.likely, strict=True)
    ]
