"""Weights of other programs load into our models to exactly equal logits, and ours into theirs."""

import argparse

import numpy as np
import pytest
import timm
import torch
from foreign import FLASHKAT, KAT, SMALL, existing_code, google_arrays, images, vit
from safetensors.torch import save_file
from torch import nn

from flashkat import checkpoints
from flashkat.checkpoints.export import renamed_for
from flashkat.errors import InputError
from flashkat.nn.formats import FORMATS

STYLES = {"kat": KAT, "flashkat": FLASHKAT}


def ours(seed=5, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model("kat_tiny_patch16_224", **{**SMALL, **kwargs}).eval()


def translated(state):
    """A foreign KAT's weights in our names, by hand."""
    table = {"weight_numerator": "numerator", "numerator_v": "numerator"}
    table |= {"weight_denominator": "denominator", "denominator_v": "denominator"}
    found = {}
    for key, value in state.items():
        *path, last = key.split(".")
        found[".".join([*path, table.get(last, last)])] = value
    return found


def reference(state, **kwargs):
    model = ours(seed=6, **kwargs)
    assert translated(state).keys() == model.state_dict().keys()
    model.load_state_dict(translated(state))
    return model


def save(model, path, wrap=lambda state: state):
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(wrap(model.state_dict()), path)
    return path


def load(path, model=None, **options):
    model = model or ours()
    checkpoints.load_weights(model, checkpoints.weights(checkpoints.read(path), **options), str(path))
    return model


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("style", STYLES)
def test_published_weights_load_to_equal_logits(style, suffix, tmp_path):
    theirs = existing_code(STYLES[style])
    model = load(save(theirs, tmp_path / f"weights{suffix}"))
    assert torch.equal(model(images()), reference(theirs.state_dict())(images()))
    torch.testing.assert_close(model(images()), theirs(images()), rtol=1e-4, atol=1e-4)
    assert not torch.equal(model(images()), ours()(images()))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("use_ema", [False, True])
def test_timms_training_checkpoints_with_their_averages(style, use_ema, tmp_path):
    theirs, average = (existing_code(STYLES[style], seed=seed) for seed in (0, 1))
    torch.save(
        {
            "epoch": 3,
            "arch": "kat_tiny_swish_patch16_224",
            "state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()},
            "optimizer": {"state": {}, "param_groups": []},
            "version": 2,
            "args": argparse.Namespace(model="kat_tiny_swish_patch16_224", model_kwargs={}),
            "state_dict_ema": average.state_dict(),
            "metric": 71.0,
        },
        tmp_path / "last.pth.tar",
    )
    model = load(tmp_path / "last.pth.tar", use_ema=use_ema)
    assert torch.equal(model(images()), reference((average if use_ema else theirs).state_dict())(images()))


@pytest.mark.parametrize("style", STYLES)
def test_every_way_of_loading_takes_foreign_names(style, tmp_path):
    theirs = existing_code(STYLES[style])
    expected = reference(theirs.state_dict())(images())
    path = save(theirs, tmp_path / "weights.pth")

    state = torch.load(path, weights_only=True)
    before = list(state)
    model = ours()
    model.load_state_dict(state)
    assert torch.equal(model(images()), expected)
    assert list(state) == before

    assert torch.equal(ours(checkpoint_path=str(path))(images()), expected)
    overlay = {"file": str(path), "num_classes": 5, "input_size": (3, 32, 32)}
    assert torch.equal(ours(pretrained=True, pretrained_cfg_overlay=overlay)(images()), expected)


def test_names_of_two_formats_for_one_rational_are_not_guessed_at():
    model = ours()
    state = model.state_dict()
    state["blocks.0.mlp.act1.weight_numerator"] = torch.zeros(1, 6)
    with pytest.raises(InputError, match=r"1 unexpected \(blocks.0.mlp.act1.weight_numerator\)"):
        checkpoints.load_weights(model, state, "two.pth")
    del state["blocks.0.mlp.act1.numerator"]
    state["blocks.0.mlp.act1.numerator_v"] = torch.ones(1, 6)
    with pytest.raises(InputError, match=r"1 unexpected \(blocks.0.mlp.act1.numerator_v\)"):
        checkpoints.load_weights(model, state, "two.pth")


def test_what_is_missing_is_listed_under_our_names():
    state = existing_code(KAT).state_dict()
    del state["blocks.1.mlp.act2.weight_denominator"]
    with pytest.raises(InputError, match=r"1 missing \(blocks.1.mlp.act2.denominator\)$"):
        checkpoints.load_weights(ours(), state, "short.pth")


def test_partial_loading_says_what_it_left_out():
    theirs = existing_code(KAT, num_classes=7).state_dict()
    theirs["extra"] = torch.ones(1)
    del theirs["norm.bias"]
    model, before = ours(), ours().state_dict()
    said = checkpoints.load_weights(model, theirs, "odd.pth", partial=True)
    assert "1 missing (norm.bias)" in said
    assert "1 unexpected (extra)" in said
    assert "2 of another shape (head.weight (7, 48) for (5, 48), head.bias (7,) for (5,))" in said
    after = model.state_dict()
    for key, value in translated(theirs).items():
        if key in ("head.weight", "head.bias"):
            assert torch.equal(after[key], before[key])
        elif key != "extra":
            assert torch.equal(after[key], value)
    assert torch.equal(after["norm.bias"], before["norm.bias"])


def test_partial_loading_of_nothing_at_all_is_an_error():
    with pytest.raises(InputError, match="is of another model"):
        checkpoints.load_weights(ours(), {"a": torch.ones(1)}, "a.pth", partial=True)
    assert checkpoints.load_weights(ours(), ours().state_dict(), "b.pth", partial=True) == ""


# --- Google's files ---------------------------------------------------------------------------------------------------


def write_npz(arrays, path):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_googles_vit_loads_to_equal_logits(prefix, tmp_path):
    source = vit()
    arrays = {prefix + key: value for key, value in google_arrays(source).items()}
    arrays[f"{prefix}pre_logits/kernel"] = np.zeros((48, 48), dtype=np.float32)
    arrays[f"{prefix}pre_logits/bias"] = np.zeros(48, dtype=np.float32)
    path = write_npz(arrays, tmp_path / "vit.npz")
    assert torch.equal(load(path, vit(seed=3))(images()), source(images()))
    # As timm itself reads the file.
    by_timm = vit(seed=4)
    by_timm.load_pretrained(str(path))
    assert torch.equal(by_timm(images()), source(images()))


@pytest.mark.parametrize(
    "sizes",
    [{"img_size": (16, 24), "patch_size": (4, 8)}, {"in_chans": 1}, {"mlp_ratio": 57 / 48}, {"depth": 1}],
    ids=str,
)
def test_googles_vit_of_other_sizes(sizes, tmp_path):
    source = vit(**sizes)
    path = write_npz(google_arrays(source), tmp_path / "vit.npz")
    before = torch.get_rng_state()
    state = checkpoints.read(path)["state_dict"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(state, dict(source.state_dict()), rtol=0, atol=0)


def test_googles_vit_without_a_head(tmp_path):
    arrays = {key: value for key, value in google_arrays(vit()).items() if not key.startswith("head/")}
    state = checkpoints.read(write_npz(arrays, tmp_path / "vit.npz"))["state_dict"]
    assert state.keys() == {key for key in vit().state_dict() if not key.startswith("head.")}


@pytest.mark.parametrize(
    "key",
    [
        "cls",
        "embedding/kernel",
        "head/bias",
        "Transformer/encoder_norm/scale",
        "Transformer/encoderblock_0/MlpBlock_3/Dense_1/kernel",
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/bias",
    ],
)
def test_npz_that_lacks_a_key(key, tmp_path):
    arrays = google_arrays(vit())
    del arrays[key]
    path = write_npz(arrays, tmp_path / "short.npz")
    with pytest.raises(InputError, match=rf"short\.npz is not of one of Google's original ViTs: 1 missing \({key}\)$"):
        checkpoints.read(path)


def test_npz_of_something_else(tmp_path):
    path = write_npz({"images": np.zeros(3)}, tmp_path / "data.npz")
    with pytest.raises(InputError, match=r"\d missing \(.*1 unexpected \(images\)"):
        checkpoints.read(path)


def test_npz_whose_arrays_have_other_shapes(tmp_path):
    arrays = google_arrays(vit())
    arrays["embedding/kernel"] = np.zeros((3, 3), dtype=np.float32)
    with pytest.raises(InputError, match="as the weights of a ViT"):
        checkpoints.read(write_npz(arrays, tmp_path / "odd.npz"))
    arrays["embedding/kernel"] = np.array([["a"]])
    with pytest.raises(InputError, match="as the weights of a ViT"):
        checkpoints.read(write_npz(arrays, tmp_path / "odd.npz"))


def test_npz_runs_no_code(tmp_path):
    arrays = {**google_arrays(vit()), "cls": np.array([print], dtype=object)}
    np.savez(tmp_path / "evil.npz", **arrays)
    with pytest.raises(InputError, match="would need to run code"):
        checkpoints.read(tmp_path / "evil.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"text", None])
def test_npz_that_is_none(content, tmp_path):
    if content is None:
        write_npz(google_arrays(vit()), tmp_path / "whole.npz")
        content = (tmp_path / "whole.npz").read_bytes()[:5000]
    (tmp_path / "cut.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"cut\.npz is no \.npz, or truncated or damaged"):
        checkpoints.read(tmp_path / "cut.npz")


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_a_vits_weights_start_a_kat(suffix, tmp_path):
    source, path = vit(), tmp_path / f"vit{suffix}"
    if suffix == ".npz":
        write_npz(google_arrays(source), path)
    else:
        save(source, path)
    model, fresh = ours(), ours().state_dict()
    notes = checkpoints.start_from(model, path)
    assert len(notes) == 1
    assert "4 rationals keep their starting functions" in notes[0]
    weights = source.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key] if ".act" in key else weights[key]), key
    # With SiLU for GELU, as the rationals start, it is the ViT.
    for block in source.blocks:
        block.mlp.act = nn.SiLU()
    torch.testing.assert_close(model(images()), source(images()), rtol=0, atol=1e-3)


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_head_and_positions_are_adapted(suffix, tmp_path):
    source, path = vit(), tmp_path / f"vit{suffix}"
    if suffix == ".npz":
        write_npz(google_arrays(source), path)
    else:
        save(source, path)
    model, fresh = ours(num_classes=9, img_size=48), ours(num_classes=9, img_size=48).state_dict()
    notes = checkpoints.start_from(model, path)
    assert len(notes) == 2
    assert f"the classifier is new: 5 classes in {path}, 9 here" in notes
    after = model.state_dict()
    assert torch.equal(after["head.weight"], fresh["head.weight"])
    assert torch.equal(after["head.bias"], fresh["head.bias"])
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, new_size=(6, 6), num_prefix_tokens=1)
    assert torch.equal(after["pos_embed"], expected)
    assert model(images(size=48)).shape == (2, 9)


@pytest.mark.parametrize("classes", [0, 9])
def test_a_kats_weights_start_a_kat_for_another_task(classes, tmp_path):
    theirs = existing_code(KAT)
    model = ours(num_classes=classes)
    (note,) = checkpoints.start_from(model, save(theirs, tmp_path / "kat.pth"))
    assert note.startswith("the classifier is new: 5 classes")
    assert torch.equal(model.forward_features(images()), reference(theirs.state_dict()).forward_features(images()))


def test_starting_takes_all_of_what_fits(tmp_path):
    theirs = existing_code(KAT)
    model = ours()
    assert checkpoints.start_from(model, save(theirs, tmp_path / "kat.pth")) == []
    assert torch.equal(model(images()), reference(theirs.state_dict())(images()))


def test_starting_takes_the_average_where_there_is_one(tmp_path):
    theirs, average = (existing_code(KAT, seed=seed).state_dict() for seed in (0, 1))
    torch.save({"state_dict": theirs, "state_dict_ema": average}, tmp_path / "both.pth")
    for use_ema, expected in ((None, average), (True, average), (False, theirs)):
        model = ours()
        checkpoints.start_from(model, tmp_path / "both.pth", use_ema=use_ema)
        assert torch.equal(model(images()), reference(expected)(images()))


def test_starting_with_grey_images(tmp_path):
    source, model = vit(), ours(in_chans=1)
    notes = checkpoints.start_from(model, save(source, tmp_path / "vit.pth"))
    assert any("3 channels in" in note and "1 here" in note for note in notes)
    expected = source.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj.weight, expected)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda: vit(depth=3), "12 unexpected (blocks.2."),
        (lambda: vit(depth=1), "missing (blocks.1."),
        (lambda: vit(embed_dim=24), "of another shape"),
        (lambda: vit(reg_tokens=2), "unexpected (reg_token)"),
        (lambda: nn.Linear(2, 2), "missing"),
    ],
)
def test_starting_from_another_architecture_is_an_error(source, words, tmp_path):
    model = ours()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        checkpoints.start_from(model, save(source(), tmp_path / "other.pth"))
    assert words in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_starting_from_half_a_kat_is_an_error(tmp_path):
    theirs = existing_code(KAT)
    theirs.blocks[1].mlp.act2 = nn.Identity()
    path = save(theirs, tmp_path / "half.pth")
    with pytest.raises(InputError, match=r"2 missing \(blocks.1.mlp.act2.denominator, blocks.1.mlp.act2.numerator\)"):
        checkpoints.start_from(ours(), path)
    (note,) = checkpoints.start_from(ours(), path, partial=True)
    assert "fits in part: 2 missing" in note


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
    with pytest.raises(InputError, match="is no KAT's: it holds no rationals"):
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
