"""``flashkat export``: what it writes loads into the code it is for, bit for bit."""

import pytest
import timm
import torch
from foreign import FLASHKAT, KAT, SMALL, existing_code, images, ours, vit
from safetensors.torch import load_file

from flashkat import checkpoints
from flashkat.checkpoints.export import renamed_for
from flashkat.cli.main import main
from flashkat.errors import InputError
from flashkat.nn.formats import FORMATS

STYLES = {"kat": KAT, "flashkat": FLASHKAT}


def trained(seed=0):
    torch.manual_seed(seed)
    model = timm.create_model("kat_tiny_patch16_224", **SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.pth.tar"
    states = {"state_dict": trained().state_dict(), "state_dict_ema": trained(1).state_dict()}
    checkpoints.write(path, {"arch": "kat_tiny_patch16_224", "args": {}, "epoch": 3, **states})
    return path


def export(*argv):
    assert main(["export", *(str(argument) for argument in argv)]) == 0


def read(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("style", STYLES)
def test_existing_code_loads_it(style, suffix, checkpoint, tmp_path, capsys):
    path = tmp_path / f"theirs{suffix}"
    export(checkpoint, "-o", path, "--format", style)
    assert f"Wrote 40 tensors to {path}, with the names of {style}" in capsys.readouterr().out
    theirs = existing_code(STYLES[style], seed=9)
    theirs.load_state_dict(read(path))
    torch.testing.assert_close(theirs(images()), trained()(images()), rtol=1e-4, atol=1e-4)
    # timm's own loader, which that code calls.
    by_timm = existing_code(STYLES[style], seed=8)
    timm.models.load_checkpoint(by_timm, str(path))
    assert torch.equal(by_timm(images()), theirs(images()))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("style", ["kat", "flashkat", "timm"])
def test_there_and_back_is_bit_exact(style, suffix, checkpoint, tmp_path):
    path, back = tmp_path / f"theirs{suffix}", tmp_path / f"back{suffix}"
    export(checkpoint, "-o", path, "--format", style)
    export(path, "-o", back, "--format", "timm")
    expected, found = trained().state_dict(), read(back)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    torch.manual_seed(7)
    for file in (path, back):
        model = timm.create_model("kat_tiny_patch16_224", checkpoint_path=str(file), **SMALL).eval()
        assert torch.equal(model(images()), trained()(images()))


def test_kats_names_unless_told_otherwise(checkpoint, tmp_path):
    export(checkpoint, "-o", tmp_path / "theirs.pth")
    existing_code(KAT).load_state_dict(read(tmp_path / "theirs.pth"))


def test_averaged_weights(checkpoint, tmp_path, capsys):
    export(checkpoint, "-o", tmp_path / "average.pth", "--format", "timm", "--use-ema")
    expected = trained(1).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in read(tmp_path / "average.pth").items())
    assert not capsys.readouterr().err


def test_says_that_averaged_weights_were_better(checkpoint, tmp_path, capsys):
    better = {**torch.load(checkpoint, weights_only=True), "metric_weights": "state_dict_ema"}
    torch.save(better, tmp_path / "better.pth")
    export(tmp_path / "better.pth", "-o", tmp_path / "own.pth")
    assert "the averaged ones were better: --use-ema takes those" in capsys.readouterr().err


def test_other_dtypes_stay(checkpoint, tmp_path):
    half = {key: value.bfloat16() for key, value in trained().state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    export(tmp_path / "half.pth", "-o", tmp_path / "theirs.safetensors", "--format", "timm")
    for key, value in read(tmp_path / "theirs.safetensors").items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, half[key])


def test_tensors_that_share_memory(tmp_path):
    state = trained().state_dict()
    pair = torch.randn(2, 48)
    state["norm.weight"], state["norm.bias"] = pair[0], pair[1]
    state["blocks.0.norm1.weight"] = pair[0]
    torch.save(state, tmp_path / "shared.pth")
    export(tmp_path / "shared.pth", "-o", tmp_path / "theirs.safetensors", "--format", "timm")
    assert all(torch.equal(value, state[key]) for key, value in read(tmp_path / "theirs.safetensors").items())


def test_an_older_export_is_replaced(checkpoint, tmp_path):
    (tmp_path / "theirs.pth").write_bytes(b"old")
    export(checkpoint, "-o", tmp_path / "theirs.pth")
    assert len(read(tmp_path / "theirs.pth")) == 40


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_existing_code_loads_what_is_exported(style):
    model = ours()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    theirs = existing_code(STYLES[style], seed=9)
    exported = renamed_for(model.state_dict(), style, "model")
    theirs.load_state_dict(exported)
    torch.testing.assert_close(theirs(images()), model(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_export_from_any_format_to_any_is_bit_exact(first, second):
    state = ours().state_dict()
    there = renamed_for(renamed_for(state, first, "a"), second, "b")
    back = renamed_for(there, "timm", "c")
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert sum(FORMATS[second][0] == key.rpartition(".")[2] for key in there) == 4


@pytest.mark.parametrize(
    ("arguments", "format", "words"),
    [
        ({"m": 5}, "kat", "one numerator of 6"),
        ({"n": 3}, "kat", "8 denominators of 4"),
        ({"m": 5}, "flashkat", "numerators of 6"),
        ({"n": 3}, "flashkat", "denominators of 4"),
    ],
)
def test_coefficients_that_only_timm_can_hold(arguments, format, words):
    with pytest.raises(InputError, match=f"it knows .*{words}.*: give --format timm$"):
        renamed_for(ours(**arguments).state_dict(), format, "model")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"den_groups": 4}, r"blocks.0.mlp.act1.weight_denominator \(4, 4\)"),
        ({"num_groups": 8}, r"blocks.0.mlp.act1.weight_numerator \(8, 6\)"),
    ],
)
def test_groups_that_kats_code_cannot_hold(arguments, words):
    with pytest.raises(InputError, match=f"{words} of model.*: give --format timm or flashkat$"):
        renamed_for(ours(**arguments).state_dict(), "kat", "model")


@pytest.mark.parametrize("format", ["flashkat", "timm"])
def test_more_groups_where_the_other_code_has_them(format):
    state = ours(num_groups=4, den_groups=4).state_dict()
    assert len(renamed_for(state, format, "model")) == len(state)


def test_export_of_what_is_no_kat():
    with pytest.raises(InputError, match="is of a model without rationals: name a checkpoint of a KAT"):
        renamed_for(vit().state_dict(), "kat", "vit.pth")
    state = ours().state_dict()
    del state["blocks.1.mlp.act1.numerator"]
    with pytest.raises(InputError, match=r"are not whole: 1 missing \(blocks.1.mlp.act1.weight_numerator\)"):
        renamed_for(state, "kat", "short.pth")
    state["blocks.1.mlp.act1.numerator"] = state["blocks.1.mlp.act1.numerator_v"] = torch.zeros(1, 6)
    with pytest.raises(InputError, match=r"are not whole: 1 unexpected"):
        renamed_for(state, "kat", "both.pth")
    with pytest.raises(InputError, match="no format 'onnx': choose one of timm, kat, flashkat"):
        renamed_for(ours().state_dict(), "onnx", "a.pth")


def _without_a_tensor(state):
    del state["blocks.0.norm1.weight"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_a_tensor, "1 missing (blocks.0.norm1.weight)"),
        (lambda state: state.update(extra=torch.ones(1)), "1 unexpected (extra)"),
        (lambda state: state.update({"module.norm.bias": state["norm.bias"]}), "1 unexpected (module.norm.bias)"),
    ],
    ids=["missing", "unexpected", "twice"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_no_model_loads_are_not_written(change, words, suffix, tmp_path, capsys):
    model, state = {key: value for key, value in SMALL.items() if key != "img_size"}, trained().state_dict()
    change(state)
    content = {"arch": "kat_tiny_patch16_224", "args": {"img_size": SMALL["img_size"], "model_kwargs": model}}
    checkpoints.write(tmp_path / "last.pth.tar", {**content, "epoch": 3, "state_dict": state})
    assert main(["export", str(tmp_path / "last.pth.tar"), "-o", str(tmp_path / f"theirs{suffix}")]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth.tar"]
