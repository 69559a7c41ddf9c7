"""Our models join the filters of timm's own tests, or a message says that the filters have changed."""

import pytest

from dev.timm_tests import FILTERS, with_our_models

FILE = """
import torch
import timm
from timm import list_models

FEAT_INTER_FILTERS = [
    'vision_transformer', 'beit',
]
NON_STD_FILTERS = [
    'vit_*',
]
EXCLUDE_JIT_FILTERS = [
    'hiera_*',
]
EXCLUDE_FEAT_FILTERS = NON_STD_FILTERS[:]
"""


def test_our_models_join_the_filters():
    found = {}
    exec(with_our_models(FILE), found)
    assert found["FEAT_INTER_FILTERS"] == ["kat", "vision_transformer", "beit"]
    assert found["EXCLUDE_FEAT_FILTERS"] == ["kat_*", "flash_kat_*", "vit_*"]
    assert found["EXCLUDE_JIT_FILTERS"] == ["kat_*", "flash_kat_*", "hiera_*"]
    assert "kat_tiny_patch16_224" in found["list_models"]("kat_*")
    assert "flashkat" in found


@pytest.mark.parametrize("name", ["import timm", *FILTERS])
def test_a_filter_that_is_gone_is_missed(name):
    with pytest.raises(SystemExit, match=f"no '{name}.* any more"):
        with_our_models(FILE.replace(f"\n{name}", "\nother"))
