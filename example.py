#!/usr/bin/env python
"""Classify an image with a published KAT: python example.py [IMAGE].

Without an IMAGE it takes a photograph that scikit-learn ships. The weights are downloaded once.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from flashkat.errors import InputError
from flashkat.models import create_model

MODEL = "kat_tiny_patch16_224"


def main(path: str | None = None) -> None:
    """Print the five most probable classes of an image."""
    image = _read(path) if path else Image.fromarray(load_sample_image("flower.jpg"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(MODEL, pretrained=True).to(device).eval()

    # The size, crop, mean and standard deviation that the model was trained with.
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        probabilities = model(transform(image)[None].to(device)).softmax(dim=1)[0]

    names = timm.data.ImageNetInfo()
    for probability, index in zip(*(values.tolist() for values in probabilities.topk(5)), strict=True):
        print(f"{probability:6.1%}  {names.index_to_description(index)}")


def _read(path: str) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or 'it is no image'}; name an image file") from error


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except InputError as error:
        print(f"example.py: error: {error}", file=sys.stderr)
        sys.exit(2)
