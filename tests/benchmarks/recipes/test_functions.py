"""What a KAT's rationals have learned, from its weights alone."""

import pytest
import torch

from benchmarks.recipes import functions
from flashkat.models import create_model

KWARGS = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 2}


def summary(start="gelu", change=lambda model: None, **kwargs):
    model = create_model("kat_tiny_patch16_224", **KWARGS, act_init=start, **kwargs)
    change(model)
    return functions.learned_functions(model.state_dict(), start)


def test_a_new_kat_has_its_starts():
    first, second = summary()
    assert (first["layer"], first["nearest"], first["share"]) == ("blocks.0.mlp.act1", "identity", 1)
    assert (second["layer"], second["nearest"]) == ("blocks.0.mlp.act2", "gelu")
    assert first["moved"] == 0
    assert first["slope_at_0"] == 1
    assert second["slope_at_0"] == pytest.approx(0.5, abs=1e-3)


def test_most_groups_decide():
    def change(model):
        numerator = model.blocks[0].mlp.act1.numerator.data
        numerator[:5] = torch.tensor([0.0, 0.0, 1.0, 0.0])  # the square

    first, _ = summary("swish", change, m=4, n=2, num_groups=8, den_groups=8)
    assert (first["nearest"], first["share"]) == ("square", 0.625)
    assert first["slope_at_0"] == pytest.approx(3 / 8)
    assert first["moved"] > 1


def test_few_of_many_channels_are_looked_at(monkeypatch):
    seen = []
    measure = functions.measure
    monkeypatch.setattr(
        functions, "measure", lambda found, inputs: seen.extend(found.values()) or measure(found, inputs)
    )
    summary(num_groups=0, den_groups=0)
    assert [each.groups for each in seen] == [16, 16]
