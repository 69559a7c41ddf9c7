"""Steps are drawn as timm draws them, and what cannot be drawn is named."""

import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from timm.data import auto_augment

from flashkat.data.batched.steps import NUMBERS, Operation, Recipe, UnsupportedError, as_table


def _states():
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "v0", "originalr-mstd0.5", ""])
def test_random_states_move_on_as_with_timm(policy, pictures, secondary, seeded):
    transforms = secondary(policy, grayscale_prob=0.3)
    recipe = Recipe(transforms)
    for number, image in enumerate(pictures):
        seeded(number)
        for transform in transforms:
            image = transform(image)
        expected = _states()
        seeded(number)
        recipe.draw(image.size)
        assert _states() == expected


def test_operations_and_magnitudes_have_timms_distribution(secondary, seeded):
    """Half of the layers are left out, and all 15 operations come equally often."""
    recipe, count = Recipe(secondary("rand-m9-mstd0.5")), 3000
    seeded(0)
    steps = [step for _ in range(count) for step in recipe.draw((224, 224))]
    assert len(steps) == pytest.approx(count, rel=0.05)
    found = Counter(operation for operation, _ in steps)
    one = len(steps) / 15
    for operation in set(Operation) - {Operation.NOTHING, Operation.BILINEAR, Operation.BICUBIC}:
        assert found[operation] == pytest.approx(one, rel=0.3), operation.name
    assert found[Operation.BILINEAR] + found[Operation.BICUBIC] == pytest.approx(5 * one, rel=0.15)
    # A magnitude of 9 with a deviation of 0.5, at most 10, is a factor of 1.72 with one of 0.09.
    factors = [numbers[0] for operation, numbers in steps if operation == Operation.COLOR]
    assert np.mean(factors) == pytest.approx(1.71, abs=0.03)
    assert np.std(factors) == pytest.approx(0.085, abs=0.02)
    assert max(factors) <= 1.9 + 1e-9


@pytest.mark.parametrize(
    ("policy", "options", "named"),
    [
        ("3a", {}, "GaussianBlur"),
        ("augmix-m3-w3", {}, "AugMix"),
        ("", {"color_jitter": (0.4, 0.4, 0.4, 0.1)}, "hue"),
        ("", {"gaussian_blur_prob": 0.5}, "RandomApply"),
        ("rand-m9", {"interpolation": "lanczos"}, "interpolation"),
    ],
)
def test_what_cannot_be_drawn_is_named(policy, options, named, secondary):
    with pytest.raises(UnsupportedError, match=named):
        Recipe(secondary(policy, **options))


def test_timms_transform_stays_as_it_was(secondary):
    transforms = secondary("rand-m9")
    Recipe(transforms)
    assert {each.aug_fn for each in transforms[0].ops} <= {*auto_augment.NAME_TO_OP.values()} | {
        each.aug_fn for each in transforms[0].ops if each.name == "Posterize"
    }


def test_a_recipe_goes_to_other_processes(secondary, seeded):
    recipe = Recipe(secondary("rand-m9-mstd0.5"))
    other = pickle.loads(pickle.dumps(recipe))
    seeded(3)
    expected = [recipe.draw((9, 9)) for _ in range(9)]
    seeded(3)
    assert [other.draw((9, 9)) for _ in range(9)] == expected


def test_a_table_is_as_long_as_the_most_steps():
    table = as_table([[(Operation.COLOR, (0.5,))], [], [(Operation.INVERT, ()), (Operation.SOLARIZE, (3,))]])
    assert table.shape == (2, 3, 1 + NUMBERS)
    assert table[:, :, 0].tolist() == [[9, 0, 1], [0, 0, 3]]
    assert table[0, 0, 1] == 0.5
    assert as_table([[], []]).shape == (0, 2, 1 + NUMBERS)
