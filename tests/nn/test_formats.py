"""Names of coefficients: found whatever the format, and only where a rational is."""

import pytest
import torch

from flashkat import GRKAN, GroupRational
from flashkat.compat import FlashKAT_Group, KAT_Group
from flashkat.nn.formats import (
    FORMATS,
    accept_formats,
    coefficient_names,
    rational_names,
    rename_rationals,
    renamings,
)


@pytest.mark.parametrize("theirs", FORMATS.values())
@pytest.mark.parametrize("ours", FORMATS.values())
def test_every_format_is_renamed_to_every_other(theirs, ours):
    names, wanted = ([f"blocks.0.mlp.act1.{name}" for name in pair] for pair in (theirs, ours))
    found = renamings([*names, "head.weight"], wanted)
    assert found == ({} if theirs == ours else dict(zip(names, wanted, strict=True)))


def test_names_that_are_wanted_or_taken_stay():
    assert renamings(["numerator", "weight_numerator"], ["numerator", "denominator"]) == {}
    assert renamings(["numerator_v", "weight_numerator"], ["numerator"]) == {"numerator_v": "numerator"}
    assert renamings(["act.bias", "act.weight"], ["act.numerator"]) == {}


def test_a_state_keeps_its_order_and_its_tensors():
    state = {"a.weight_numerator": torch.ones(1), "head": torch.zeros(1), "a.weight_denominator": torch.ones(2)}
    new = rename_rationals(state, ["a.numerator", "a.denominator"])
    assert list(new) == ["a.numerator", "head", "a.denominator"]
    assert all(one is other for one, other in zip(new.values(), state.values(), strict=True))


def test_rationals_of_a_grkan_are_told_from_other_names():
    ours = [f"blocks.3.mlp.act{number}.{name}" for number in (1, 2) for pair in FORMATS.values() for name in pair]
    others = ["blocks.3.mlp.act3.numerator", "act1.bias", "numerator", "mlp.fc1.weight", "act1.numerator.x"]
    assert rational_names([*others, *ours]) == ours


def test_tables_are_found_in_every_format_and_in_order():
    net = torch.nn.Sequential(KAT_Group(device="cpu"), FlashKAT_Group(16, device="cpu"), GRKAN(16))
    net.numerator = torch.nn.Parameter(torch.ones(3))  # without a denominator it is another thing
    assert coefficient_names(net) == [
        *("0.weight_numerator", "0.weight_denominator", "1.numerator_v", "1.denominator_v"),
        *(f"2.act{number}.{name}" for number in (1, 2) for name in ("numerator", "denominator")),
    ]
    assert coefficient_names(GroupRational(8)) == ["numerator", "denominator"]


def test_the_hook_renames_below_its_prefix_only():
    state = {"a.numerator_v": torch.ones(1, 6), "b.numerator_v": torch.ones(1, 6), "a.x": torch.ones(1)}
    accept_formats(GroupRational(16), state, "a.", {}, True, [], [], [])
    assert set(state) == {"a.numerator", "b.numerator_v", "a.x"}
