"""A model of a few thousand parameters, and images that it trains on in a second."""

import numpy as np
import torch
from PIL import Image

from flashkat import GroupRational

MODEL = "kat_tiny_patch16_224"
KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
MODEL_KWARGS = ["--model-kwargs", *(f"{key}={value}" for key, value in KWARGS.items())]
FLAGS = ["--model", MODEL, "--img-size", "8", *MODEL_KWARGS]


def write_images(root, train=8, val=4, val_name="val"):
    """Two classes of 8x8 images that differ in brightness."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), (val_name, val)):
        for name, level in (("dark", 70), ("light", 185)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(level, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def weights(path, answer=None, classes=5):
    """Weights of a model, one that always answers the same class where that is given."""
    from flashkat.models import create_model

    torch.manual_seed(0)
    model = create_model(MODEL, img_size=8, num_classes=classes, **KWARGS)
    if answer is not None:
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)
        model.head.bias.data[answer] = 1
    torch.save(model.state_dict(), path)
    return path


def checkpoint():
    """The checkpoint of a linear layer, with the entries that training writes."""
    torch.manual_seed(0)
    return {
        "arch": "net",
        "args": {"lr": 0.1, "scale": [0.08, 1.0], "aa": None},
        "classes": ["cat", "dog"],
        "epoch": 3,
        "state_dict": {"weight": torch.randn(2, 3), "bias": torch.randn(2)},
    }


def same(a, b):
    """Whether two state_dicts hold the same bits under the same names."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stirred(model):
    """Moves every coefficient, so that groups differ from each other and from where they started."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, GroupRational):
            for table in (module.numerator, module.denominator):
                table.data += 0.3 * torch.randn(table.shape, generator=generator)
    return model
