"""Weights of any program load into a model: whole, in part, or to fine-tune from."""

import argparse

import pytest
import timm
import torch
from foreign import FLASHKAT, KAT, existing_code, google_arrays, images, ours, save, translated, vit, write_npz
from tiny import checkpoint, same
from torch import nn

from flashkat import checkpoints
from flashkat.checkpoints.adapt import with_channels
from flashkat.errors import InputError

STYLES = {"kat": KAT, "flashkat": FLASHKAT}


def reference(state, **kwargs):
    model = ours(seed=6, **kwargs)
    assert translated(state).keys() == model.state_dict().keys()
    model.load_state_dict(translated(state))
    return model


def load(path, model=None, **options):
    model = model or ours()
    checkpoints.load_weights(model, checkpoints.weights(checkpoints.read(path), **options), str(path))
    return model


PLACES = ["state_dict", "model", "model_state_dict", "model_state", "module", "net"]
PREFIXES = ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model.backbone."]


@pytest.mark.parametrize("wrap", [lambda s: s, *(lambda s, name=name: {name: s, "epoch": 1} for name in PLACES)])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_in_the_usual_places(wrap, prefix):
    state = checkpoint()["state_dict"]
    found = checkpoints.weights(wrap({prefix + name: value for name, value in state.items()}))
    assert same(found, state)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_within_names(wrapper):
    state = {"blocks.0.weight": torch.ones(1), "head.weight": torch.zeros(1)}
    wrapped = {f"blocks.0.{wrapper}.weight": torch.ones(1), "head.weight": torch.zeros(1)}
    assert same(checkpoints.weights(wrapped), state)
    kept = {f"my{wrapper}.weight": torch.ones(1)}
    assert same(checkpoints.weights(kept), kept)


def test_weights_beside_those_of_a_loss():
    """As in Lightning's checkpoints, where the loss has the weights of the classes."""
    state = {**checkpoint()["state_dict"], "criterion.weight": torch.ones(2)}
    found = checkpoints.weights({"state_dict": {"model.weight": state["weight"], **state, "model.bias": state["bias"]}})
    assert found.keys() == {"weight", "bias", "criterion.weight", "model.weight", "model.bias"}
    wrapped = {"criterion.weight": torch.ones(2), **{f"model.{name}": state[name] for name in ("weight", "bias")}}
    assert same(checkpoints.weights({"state_dict": wrapped, "pytorch-lightning_version": "2.5"}), state)


@pytest.mark.parametrize("name", ["state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema"])
def test_pytorchs_average(name):
    average = torch.optim.swa_utils.AveragedModel(nn.Linear(3, 2))
    assert "n_averaged" in average.state_dict()
    state = {"model": nn.Linear(3, 2).state_dict(), name: average.state_dict()}
    assert same(checkpoints.weights(state, use_ema=True), average.module.state_dict())
    assert same(checkpoints.weights(state, use_ema=None), average.module.state_dict())
    assert same(checkpoints.weights(average.state_dict()), average.module.state_dict())


def test_averaged_weights():
    ours, average = {"weight": torch.zeros(2)}, {"weight": torch.ones(2)}
    checkpoint = {"state_dict": ours, "state_dict_ema": average}
    assert same(checkpoints.weights(checkpoint), ours)
    assert same(checkpoints.weights(checkpoint, use_ema=True), average)
    with pytest.raises(InputError, match="holds no EMA weights: leave out --use-ema"):
        checkpoints.weights({"state_dict": ours}, use_ema=True)


@pytest.mark.parametrize("checkpoint", [{}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {"epoch": 1}])
def test_no_weights(checkpoint):
    with pytest.raises(InputError, match="holds no state_dict: give a file with the weights"):
        checkpoints.weights(checkpoint)


@pytest.mark.parametrize("checkpoint", [{"state_dict": [1]}, {"state_dict": 3}, {1: torch.ones(2)}])
def test_a_state_dict_that_is_none(checkpoint):
    with pytest.raises(InputError, match="holds no state_dict: give a file with the weights"):
        checkpoints.weights(checkpoint)


def test_load():
    model, source = nn.Linear(3, 2), checkpoint()["state_dict"]
    checkpoints.load_weights(model, source, "a.pth")
    assert same(model.state_dict(), source)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("bias"), r"1 missing \(bias\)"),
        (lambda state: state.update(scale=torch.ones(2)), r"1 unexpected \(scale\)"),
        (lambda state: state.update(weight=torch.ones(2, 4)), r"1 of another shape \(weight \(2, 4\) for \(2, 3\)\)"),
        (lambda state: state.update(weight=torch.ones(2, 3) * 1j), r"1 complex \(weight\)"),
        (lambda state: state.update(a=0, b=0, c=0), r"3 unexpected \(a, b, \.\.\.\)"),
        (lambda state: (state.pop("bias"), state.update(gain=0)), r"1 missing \(bias\); 1 unexpected \(gain\)"),
    ],
)
def test_weights_of_another_model(change, words):
    model, state = nn.Linear(3, 2), checkpoint()["state_dict"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change(state)
    with pytest.raises(InputError, match=rf"^a\.pth is of another model than Linear as asked for: {words}$"):
        checkpoints.load_weights(model, state, "a.pth")
    assert same(model.state_dict(), before)


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


def test_partial_loading_drops_no_imaginary_part():
    model, before = ours(), ours().state_dict()
    theirs = {**before, "norm.weight": torch.full((48,), 2 + 1j)}
    assert "1 complex (norm.weight)" in checkpoints.load_weights(model, theirs, "odd.pth", partial=True)
    assert torch.equal(model.state_dict()["norm.weight"], before["norm.weight"])


def test_partial_loading_of_nothing_at_all_is_an_error():
    with pytest.raises(InputError, match="is of another model"):
        checkpoints.load_weights(ours(), {"a": torch.ones(1)}, "a.pth", partial=True)
    assert checkpoints.load_weights(ours(), ours().state_dict(), "b.pth", partial=True) == ""


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
    assert f"the position embedding is resampled: 4 x 4 in {path}, 6 x 6 here" in notes
    assert f"the classifier is new: 5 classes in {path}, 9 here" in notes
    assert len(notes) == 3
    after = model.state_dict()
    assert torch.equal(after["head.weight"], fresh["head.weight"])
    assert torch.equal(after["head.bias"], fresh["head.bias"])
    # As timm resamples files of each kind.
    how = {"interpolation": "bilinear", "antialias": False} if suffix == ".npz" else {}
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, new_size=(6, 6), num_prefix_tokens=1, **how)
    assert torch.equal(after["pos_embed"], expected)
    assert model(images(size=48)).shape == (2, 9)


def test_patches_are_resampled(tmp_path):
    source = vit()
    size = source.patch_embed.patch_size[0]
    model = ours(patch_size=2 * size, img_size=2 * source.patch_embed.img_size[0])
    notes = checkpoints.start_from(model, save(source, tmp_path / "vit.pth"))
    patches = [f"{each} x {each}" for each in (size, 2 * size)]
    assert notes[0] == f"the patch embedding is resampled: {patches[0]} in {tmp_path / 'vit.pth'}, {patches[1]} here"
    assert not any("position" in note for note in notes)


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


@pytest.mark.parametrize(("given", "wanted"), [(1, 3), (4, 3), (6, 3), (6, 1), (4, 5), (2, 4), (3, 1), (3, 6)])
def test_starting_with_other_channels(given, wanted, tmp_path):
    source, model = ours(in_chans=given), ours(in_chans=wanted)
    path = save(source, tmp_path / "source.pth")
    assert checkpoints.start_from(model, path) == [
        f"the patch embedding is adapted: {given} channels in {path}, {wanted} here"
    ]
    assert torch.equal(model.patch_embed.proj.weight, with_channels(source.patch_embed.proj.weight, wanted))


TALL = {"state_dict": ours(img_size=(64, 32)).state_dict(), "args": {"input_size": [3, 64, 32], "img_size": None}}


def test_positions_of_an_oblong_image(tmp_path):
    """The checkpoint's arguments state the grid. The count of positions alone may be the same."""
    path, model = tmp_path / "tall.pth", ours(img_size=(32, 64))
    torch.save(TALL, path)
    assert checkpoints.start_from(model, path) == [f"the position embedding is resampled: 8 x 4 in {path}, 4 x 8 here"]
    positions = TALL["state_dict"]["pos_embed"]
    assert torch.equal(model.pos_embed, timm.layers.resample_abs_pos_embed(positions, (4, 8), old_size=(8, 4)))
    assert not torch.equal(model.pos_embed, positions)


def test_positions_of_an_image_that_nothing_states(tmp_path):
    path, model = tmp_path / "weights.pth", ours(img_size=(32, 64))
    torch.save(TALL["state_dict"], path)
    assert checkpoints.start_from(model, path) == [
        f"the position embedding is taken for that of 4 x 8 patches, as here: {path} does not state the size of its "
        "images"
    ]
    assert torch.equal(model.pos_embed, TALL["state_dict"]["pos_embed"])
    with pytest.raises(InputError, match=r"has 32 positions, which are no square, and the file does not state"):
        checkpoints.start_from(ours(img_size=(64, 64)), path)


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
