"""Nested values that are small in a file, and large or endless when they are walked."""

import argparse

import pytest
import torch

from flashkat.checkpoints.structure import fault_of_structure


def doubled(times, value=1):
    for _ in range(times):
        value = [value, value]
    return value


def nested(depth, value=1):
    for _ in range(depth):
        value = [value]
    return value


def in_itself():
    value = []
    value.append({"a": value})
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (doubled(30), "more than 100 values"),
        ({"a": doubled(30)}, "more than 100 values"),
        (argparse.Namespace(a=doubled(30)), "more than 100 values"),
        (["x" * 1000, "x" * 1000], "more than 100 values"),
        (dict.fromkeys(range(60), 1), "more than 100 values"),
        (nested(40), "more than 32 deep"),
        ([nested(25), nested(20, nested(25))], "more than 32 deep"),
        (in_itself(), "in themselves"),
        ([10**5000], "a number of 16,610 bits"),
        ({2**64: 1}, "a number of 65 bits"),
    ],
)
def test_faults(value, words):
    assert words in fault_of_structure(value, 100)


def test_one_list_that_is_named_at_several_depths():
    """It is deep enough for the last of them."""
    inner = nested(20)
    assert "32 deep" in fault_of_structure([inner, nested(20, inner)], 100)
    assert fault_of_structure([inner, nested(10, inner)], 100) == ""


@pytest.mark.parametrize(
    "value", [None, "x", 2**64 - 1, [1, 2.5, True], {"a": torch.ones(1000), "b": ({1, 2}, [])}, argparse.Namespace(a=1)]
)
def test_ordinary_values(value):
    assert fault_of_structure(value, 10) == ""
