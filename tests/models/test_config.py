"""Which model is made, as a section of a configuration."""

import pytest

from flashkat.defaults import DEFAULT_MODEL
from flashkat.models.config import Model


@pytest.mark.parametrize(
    ("given", "name"), [({}, DEFAULT_MODEL), ({"model": None}, DEFAULT_MODEL), ({"model": "a"}, "a")]
)
def test_name(given, name):
    assert Model(**given).name == name


def test_arguments_of_two_models_are_not_shared():
    assert Model().model_kwargs == {}
    assert Model().model_kwargs is not Model().model_kwargs
