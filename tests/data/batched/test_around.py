"""An object around another one has its attributes, and can be copied."""

import copy
import types

import pytest

from flashkat.data.batched.around import Around


class Named(Around):
    inside = "dataset"

    def __init__(self, dataset):
        self.dataset, self.own = dataset, 1


def test_attributes_are_those_of_the_object_inside():
    around = Named(types.SimpleNamespace(own=2, other=3))
    assert (around.own, around.other) == (1, 3)
    with pytest.raises(AttributeError, match="third"):
        _ = around.third


def test_copies_work_though_nothing_is_set_at_first():
    assert copy.copy(Named(types.SimpleNamespace(other=3))).other == 3
