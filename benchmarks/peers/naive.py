"""The tutorials' server: FastAPI, Pillow and torch, one image after the other in one process.

``uvicorn naive:app``; torch has the threads that it takes by itself.
"""

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
import safetensors.torch
import torch
from fastapi import FastAPI, File, UploadFile
from PIL import Image

from pipeline import model
from pipeline.artifacts import PixelSpec

folder = Path(os.environ["MODEL_FOLDER"])
about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
classes, size = about["classes"], (about["width"], about["height"])
spec = PixelSpec(height=about["height"], width=about["width"], channels=about["channels"])
network = model.build(about["architecture"], len(classes), spec)
network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
network.eval()
app = FastAPI()


@app.post("/predict")
async def predict(file: Annotated[UploadFile, File()]) -> dict[str, str | float]:
    """Class and probability of an image."""
    image = Image.open(BytesIO(await file.read())).convert("L" if spec.channels == 1 else "RGB")
    if image.size != size:
        image = image.resize(size)
    pixels = torch.from_numpy(np.array(image)).reshape(1, spec.height, spec.width, spec.channels)
    with torch.inference_mode():
        probability, index = torch.softmax(network(pixels), dim=1)[0].max(dim=0)
    return {"label": classes[index.item()], "probability": probability.item()}
