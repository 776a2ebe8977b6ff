"""FastAPI's own way to take a file, and ONNX Runtime in the handler: ``uvicorn fastapi_onnx:app --workers 2``."""

from typing import Annotated, Any

from fastapi import FastAPI, File, UploadFile
from onnx_classifier import Classifier

classifier = Classifier()
app = FastAPI()


@app.post("/predict")
async def predict(file: Annotated[UploadFile, File()]) -> dict[str, Any]:
    """Class and probability of an image."""
    return classifier.answers([classifier.decoded(await file.read())])[0]
