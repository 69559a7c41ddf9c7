"""Small models of timm, torchvision and transformers with random weights, each with an example."""

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

IMAGES = (2, 3, 32, 32)
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT |= {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SMALL = {"num_classes": 10}


def _timm(name, **kwargs):
    return lambda: timm.create_model(name, **SMALL, **kwargs)


def _gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def _hf_vit():
    sizes = {key: TEXT[key] for key in list(TEXT)[:4]}
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=16, **sizes))


SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24)}
# By name: what makes the model, its example, the number of rationals and of activations that stay.
MODELS = {
    "vit": (_timm("vit_tiny_patch16_224", img_size=32, embed_dim=16, num_heads=2, depth=2), IMAGES, 2, 0),
    "convnext": (_timm("convnext_tiny", **CONVNEXT), IMAGES, 5, 0),
    "convnext_conv": (_timm("convnext_tiny", conv_mlp=True, **CONVNEXT), IMAGES, 5, 0),
    "swin": (_timm("swin_tiny_patch4_window7_224", **SWIN), IMAGES, 3, 0),
    "mobilenetv3": (_timm("mobilenetv3_small_050"), IMAGES, 33, 9),
    "resnet50": (lambda: torchvision.models.resnet50(width_per_group=4, **SMALL), IMAGES, 49, 0),
    "gpt2": (_gpt2, None, 2, 0),
    "bert": (lambda: transformers.BertModel(transformers.BertConfig(**TEXT)), None, 3, 0),
    "hf_vit": (_hf_vit, IMAGES, 2, 0),
    "llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)), None, 2, 0),
}


def _calibrated(model):
    """The model with norms that fit to its signals, as in a trained one: they neither vanish nor grow."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(16, *IMAGES[1:]))
    return model


@pytest.fixture(params=MODELS)
def subject(request):
    """A model, its example, the number of rationals and of activations that stay."""
    torch.manual_seed(0)
    make, shape, rationals, left = MODELS[request.param]
    example = {"input_ids": torch.randint(3, 32, (2, 6))} if shape is None else torch.randn(shape)
    return _calibrated(make()), example, rationals, left
