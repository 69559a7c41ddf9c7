"""Small copies of other programs' models and files, which ours load or which load ours."""

from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
KAT = ("weight_numerator", "weight_denominator")
FLASHKAT = ("numerator_v", "denominator_v")


class MakesFile:
    """Makes a file when it is unpickled by a pickle that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class Rational(nn.Module):
    """P / Q by the formula, with a state_dict as in the code whose names are given: one numerator, 8 denominators."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        for name, shape in zip(names, ((1, 6), (8, 4)), strict=True):
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / 4))

    def forward(self, x):
        a, b = (getattr(self, name) for name in self.names)
        groups = x.unflatten(-1, (8, -1))
        top = sum(a[:, power, None] * groups**power for power in range(6))
        bottom = 1 + sum(b[:, power, None].abs() * groups.abs() ** (power + 1) for power in range(4))
        return (top / bottom).flatten(-2)


class KAN(nn.Module):
    def __init__(self, in_features, hidden_features, *, names, **kwargs):
        super().__init__()
        self.act1, self.act2 = Rational(names), Rational(names)
        self.fc1, self.fc2 = nn.Linear(in_features, hidden_features), nn.Linear(hidden_features, in_features)

    def forward(self, x):
        return self.fc2(self.act2(self.fc1(self.act1(x))))


def existing_code(names, seed=0, **kwargs):
    """A KAT as the code with these names makes it, with weights that look trained."""
    torch.manual_seed(seed)
    model = VisionTransformer(mlp_layer=partial(KAN, names=names), **{**SMALL, **kwargs}).eval()
    nn.init.normal_(model.cls_token)
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def vit(seed=0, **kwargs):
    """timm's own Vision Transformer, with weights that look trained."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", **{**SMALL, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def images(count=2, size=32, channels=3, seed=1):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def google_arrays(model):
    """The arrays of a ViT as Google's ``.npz`` files have them."""
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    heads, width = model.blocks[0].attn.num_heads, model.embed_dim
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            arrays[f"{theirs}/LayerNorm_{number}/scale"] = state[f"{ours}.{norm}.weight"]
            arrays[f"{theirs}/LayerNorm_{number}/bias"] = state[f"{ours}.{norm}.bias"]
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        weights = np.split(state[f"{ours}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{ours}.attn.qkv.bias"], 3)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}/{part}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for number, layer in enumerate(("fc1", "fc2")):
            arrays[f"{theirs}/MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}.mlp.{layer}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}.mlp.{layer}.bias"]
    return arrays


def ours(seed=5, **kwargs):
    """A KAT of this package, of the size of :func:`existing_code`."""
    torch.manual_seed(seed)
    return timm.create_model("kat_tiny_patch16_224", **{**SMALL, **kwargs}).eval()


def translated(state):
    """A foreign KAT's weights in our names, by hand."""
    table = {"weight_numerator": "numerator", "numerator_v": "numerator"}
    table |= {"weight_denominator": "denominator", "denominator_v": "denominator"}
    found = {}
    for key, value in state.items():
        *path, last = key.split(".")
        found[".".join([*path, table.get(last, last)])] = value
    return found


def save(model, path):
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return path


def write_npz(arrays, path):
    np.savez(path, **arrays)
    return path
