"""Steps on a batch give Pillow's bits, for every operation and policy."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

pytest.importorskip("triton")

from timm.data.mixup import mixup_target

from flashkat.data.batched.augment import apply_steps, mix, mixed_target
from flashkat.data.batched.steps import Operation, Recipe, as_table

FILL = (10, 120, 250)
POLICIES = [
    "rand-m9-mstd0.5",
    "rand-m9-mstd0.5-inc1",
    "rand-m15-mmax15-n3-mstd101",
    "original",
    "originalr-mstd0.5",
    "v0",
    "",
]


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_give_the_bits_of_timms(policy, pictures, secondary, seeded, as_batch, device):
    transforms = secondary(policy, grayscale_prob=0.2)
    expected, drawn, recipe = [], [], Recipe(transforms)
    for number, image in enumerate(pictures):
        seeded(number)
        drawn.append(recipe.draw(image.size))
        seeded(number)
        for transform in transforms:
            image = transform(image)
        expected.append(image)
    assert any(drawn)
    found = apply_steps(as_batch(pictures), as_table(drawn).to(device), recipe.fill)
    assert torch.equal(found, as_batch(expected))


def _affine(resampling, coefficients):
    return lambda image: image.transform(image.size, Image.AFFINE, coefficients, resampling, fillcolor=FILL)


SHEAR, SHIFT = (1, 0.3, 0, -0.2, 1, 2.5), (1, 0, 7, 0, 1, -3)
STEPS = {
    "nothing": ((Operation.NOTHING, ()), lambda image: image),
    "invert": ((Operation.INVERT, ()), ImageOps.invert),
    "solarize": ((Operation.SOLARIZE, (100,)), lambda image: ImageOps.solarize(image, 100)),
    "solarize nothing": ((Operation.SOLARIZE, (256,)), lambda image: image),
    "posterize to black": ((Operation.POSTERIZE, (0,)), lambda image: Image.new("RGB", image.size)),
    "posterize": ((Operation.POSTERIZE, (3,)), lambda image: ImageOps.posterize(image, 3)),
    "posterize nothing": ((Operation.POSTERIZE, (8,)), lambda image: image),
    "autocontrast": ((Operation.AUTOCONTRAST, ()), ImageOps.autocontrast),
    "equalize": ((Operation.EQUALIZE, ()), ImageOps.equalize),
    "brightness": ((Operation.BRIGHTNESS, (1.9,)), lambda image: ImageEnhance.Brightness(image).enhance(1.9)),
    "contrast": ((Operation.CONTRAST, (0.1,)), lambda image: ImageEnhance.Contrast(image).enhance(0.1)),
    "more contrast": ((Operation.CONTRAST, (1.73,)), lambda image: ImageEnhance.Contrast(image).enhance(1.73)),
    "colour": ((Operation.COLOR, (1.61,)), lambda image: ImageEnhance.Color(image).enhance(1.61)),
    "grey": ((Operation.COLOR, (0.0,)), lambda image: image.convert("L").convert("RGB")),
    "sharpness": ((Operation.SHARPNESS, (1.9,)), lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
    "blur": ((Operation.SHARPNESS, (0.1,)), lambda image: ImageEnhance.Sharpness(image).enhance(0.1)),
    "bilinear": ((Operation.BILINEAR, SHEAR), _affine(Image.Resampling.BILINEAR, SHEAR)),
    "bicubic": ((Operation.BICUBIC, SHEAR), _affine(Image.Resampling.BICUBIC, SHEAR)),
    "shift": ((Operation.BICUBIC, SHIFT), _affine(Image.Resampling.BICUBIC, SHIFT)),
}


def test_each_operation_gives_pillows_bits(pictures, as_batch, device):
    """All operations in one batch, each on four kinds of images."""
    cases = [(step, apply, image) for step, apply in STEPS.values() for image in pictures[:4]]
    table = as_table([[step] for step, _, _ in cases]).to(device)
    found = apply_steps(as_batch([image for *_, image in cases]), table, FILL)
    expected = as_batch([apply(image) for _, apply, image in cases])
    wrong = [index for index in range(len(cases)) if not torch.equal(found[index], expected[index])]
    assert [list(STEPS)[index // 4] for index in wrong] == []


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 3), (33, 31)])
def test_images_of_any_size(size, as_batch, device):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    for name, (step, apply) in STEPS.items():
        if min(size) < 3 and step[0] == Operation.SHARPNESS:
            continue  # Pillow's filter reads beyond such an image
        found = apply_steps(as_batch([image]), as_table([[step]]).to(device), FILL)
        assert torch.equal(found, as_batch([apply(image)])), name


def test_without_steps_images_stay(pictures, as_batch, device):
    images = as_batch(pictures)
    assert torch.equal(apply_steps(images.clone(), as_table([[] for _ in pictures]).to(device)), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (6, 1, 40, 33), (3, 4, 1, 9)], ids=str)
@pytest.mark.parametrize("box", ["whole", "part", "empty"])
def test_pairs_mix_within_a_box(box, shape, layout, dtype, device):
    height, width = shape[2:]
    top, bottom, left, right = {
        "whole": (0, height, 0, width),
        "part": (height // 3, height - height // 4, 1, width - 2),
        "empty": (0, 0, 0, 0),
    }[box]
    images = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
    out, expected = torch.full_like(images, torch.nan), images.double()
    mix(images, out, 0.3, (top, bottom, left, right))
    part = expected[..., top:bottom, left:right]
    expected[..., top:bottom, left:right] = 0.3 * part + 0.7 * part.flip(0)
    torch.testing.assert_close(out, expected.to(dtype))
    untouched = torch.ones_like(images, dtype=torch.bool)
    untouched[..., top:bottom, left:right] = False
    assert torch.equal(out[untouched], images[untouched])


def test_partners_swap_a_box_exactly(device):
    images = torch.randn(4, 3, 6, 6, device=device)
    out = torch.empty_like(images)
    mix(images, out, 0.0, (1, 4, 2, 6))
    assert torch.equal(out[:, :, 1:4, 2:6], images[:, :, 1:4, 2:6].flip(0))


@pytest.mark.parametrize("classes", [2, 10, 1000, 1500])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_targets_have_timms_bits(classes, smoothing, device):
    target = torch.randint(classes, (6,), device=device)
    target[0] = target[-1]  # partners of one class
    for share in (1.0, 0.0, 0.37, 1 / 3):
        found = mixed_target(target, classes, share, smoothing)
        assert torch.equal(found, mixup_target(target, classes, share, smoothing))
