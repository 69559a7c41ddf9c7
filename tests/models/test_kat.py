"""The registered models: what timm's users rely on, with GR-KANs inside."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer, checkpoint_filter_fn
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from flashkat import GRKAN
from flashkat.errors import InputError
from flashkat.models import KolmogorovArnoldTransformer, is_same_model

NAMES = [
    f"{prefix}_{size}{suffix}_patch16_224"
    for prefix in ("kat", "flash_kat")
    for size in ("tiny", "small", "base")
    for suffix in ("", "_swish", "_gelu")
]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
# Per block two rationals, each with 6 shared numerator coefficients and 8 groups of 4 denominator coefficients.
RATIONALS_PER_BLOCK = 2 * (6 + 8 * 4)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("kat_tiny_patch16_224", "flash_kat_tiny_swish_patch16_224", True),
        ("kat_tiny_patch16_224.vitft", "kat_tiny_patch16_224", True),
        ("kat_tiny_patch16_224", "kat_tiny_gelu_patch16_224", False),
        ("kat_tiny_patch16_224", "kat_small_patch16_224", False),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k", True),
        ("vit_tiny_patch16_224", "kat_tiny_patch16_224", False),
        ("local-dir:./a", "local-dir:./b", False),
    ],
)
def test_names_of_one_model(one, other, same):
    assert is_same_model(one, other) is same


def small(name="kat_tiny_patch16_224", seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **{**SMALL, **kwargs}).eval()


def images(count=2, size=32, channels=3, seed=1):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


# Registration


def test_all_names_are_registered_with_timm():
    assert set(NAMES) <= set(timm.list_models("*kat_*"))
    assert len(NAMES) == 18


@pytest.mark.parametrize("name", NAMES)
def test_each_name_makes_a_vision_transformer_of_grkans_that_start_as_it_says(name):
    model = timm.create_model(name, weight_init="skip", img_size=32, depth=1)
    assert isinstance(model, KolmogorovArnoldTransformer)
    assert isinstance(model, VisionTransformer)
    mlp = model.blocks[0].mlp
    assert isinstance(mlp, GRKAN)
    x = torch.linspace(-3, 3, mlp.act1.channels)
    assert torch.equal(mlp.act1(x), x)
    x = torch.linspace(-3, 3, mlp.act2.channels)
    expected = F.gelu(x) if "_gelu" in name else F.silu(x)
    torch.testing.assert_close(mlp.act2(x), expected, rtol=0, atol=2e-3)
    # The two functions are further apart than that.
    assert (F.gelu(x) - F.silu(x)).abs().max() > 0.1


@pytest.mark.parametrize(("size", "width", "heads"), [("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12)])
def test_sizes_are_those_of_the_vision_transformers(size, width, heads):
    model = timm.create_model(f"kat_{size}_patch16_224", device="meta", weight_init="skip")
    assert len(model.blocks) == 12
    assert model.embed_dim == width
    assert model.blocks[0].attn.num_heads == heads
    assert model.patch_embed.patch_size == (16, 16)
    assert model.patch_embed.img_size == (224, 224)
    assert model.blocks[0].mlp.fc1.out_features == 4 * width
    assert model.num_classes == 1000


@pytest.mark.parametrize("name", [name for name in NAMES if "tiny" in name])
def test_tiny_has_the_published_number_of_parameters(name):
    assert count(timm.create_model(name, weight_init="skip")) == 5_718_328


@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("prefix", ["kat", "flash_kat"])
def test_small_and_base_have_the_parameters_of_a_vision_transformer_and_their_rationals(prefix, size):
    model = timm.create_model(f"{prefix}_{size}_patch16_224", weight_init="skip", device="meta")
    vit = timm.create_model(f"vit_{size}_patch16_224", device="meta")
    assert count(model) == count(vit) + 12 * RATIONALS_PER_BLOCK


def test_data_config_is_that_of_imagenet_at_224():
    config = timm.data.resolve_model_data_config(small())
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert config["std"] == (0.229, 0.224, 0.225)
    assert config["interpolation"] == "bicubic"
    assert config["crop_pct"] == 0.875


# Arguments


@pytest.mark.parametrize(
    ("arguments", "numerator", "denominator"),
    [
        ({}, (1, 6), (8, 4)),
        ({"m": 4}, (1, 4), (8, 4)),
        ({"n": 2}, (1, 6), (8, 2)),
        ({"den_groups": 4}, (1, 6), (4, 4)),
        ({"den_groups": 1}, (1, 6), (1, 4)),
        ({"num_groups": 8}, (8, 6), (8, 4)),
        ({"num_groups": 4, "den_groups": 1, "m": 3, "n": 0}, (4, 3), (1, 0)),
    ],
)
def test_degrees_and_groups_reach_every_rational(arguments, numerator, denominator):
    model = small(weight_init="skip", **arguments)
    for block in model.blocks:
        for rational in (block.mlp.act1, block.mlp.act2):
            assert rational.numerator.shape == numerator
            assert rational.denominator.shape == denominator


def test_act_init_may_be_any_function():
    model = copy.deepcopy(small("kat_tiny_patch16_224", act_init=lambda x: x * torch.sin(x)))
    x = torch.linspace(-3, 3, 192)
    for block in model.blocks:
        torch.testing.assert_close(block.mlp.act2(x), x * torch.sin(x), rtol=0, atol=0.02)


def test_act_init_is_the_start_of_the_second_rational_only():
    model = small("kat_tiny_gelu_patch16_224", act_init="tanh")
    x = torch.linspace(-3, 3, 192)
    for block in model.blocks:
        assert torch.equal(block.mlp.act1(x[:48]), x[:48])
        torch.testing.assert_close(block.mlp.act2(x), torch.tanh(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"den_groups": 7}, "48 channels do not divide into 7 groups"),
        ({"num_groups": 2}, "2 and 8"),
        ({"act_init": "swoosh"}, "swoosh"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_a_gelu_model_with_a_vision_transformers_weights_computes_what_it_does():
    torch.manual_seed(0)
    arguments = {key: value for key, value in SMALL.items() if key != "num_classes"}
    vit = VisionTransformer(num_classes=50, weight_init="jax_nlhb", **arguments).eval()
    nn.init.normal_(vit.head.weight, std=48**-0.5)
    model = small("kat_tiny_gelu_patch16_224", num_classes=50)
    result = model.load_state_dict(vit.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(".act1." in key or ".act2." in key for key in result.missing_keys)
    torch.testing.assert_close(model(images()), vit(images()), rtol=0, atol=0.02)


class Recorder(nn.Module):
    """An mlp_layer of the user's own."""

    def __init__(self, in_features, hidden_features, *, m, n, num_groups, den_groups, start, **kwargs):
        super().__init__()
        self.rational = (m, n, num_groups, den_groups, start)
        self.fc2 = nn.Linear(in_features, in_features)

    def forward(self, x):
        return self.fc2(x)


@pytest.mark.parametrize("weight_init", ["kan_mimetic", "variance_preserving"])
def test_an_mlp_layer_of_the_users_own_gets_the_rationals_arguments(weight_init):
    model = small(mlp_layer=Recorder, m=5, n=3, num_groups=4, den_groups=4, act_init="mish", weight_init=weight_init)
    for block in model.blocks:
        assert isinstance(block.mlp, Recorder)
        assert block.mlp.rational == (5, 3, 4, 4, "mish")
    assert model(images()).isfinite().all()


@pytest.mark.parametrize("channels", [1, 4])
def test_input_channels(channels):
    assert small(in_chans=channels)(images(channels=channels)).shape == (2, 5)


def test_image_size():
    model = small(img_size=48)
    assert model.pos_embed.shape == (1, 1 + 6 * 6, 48)
    assert model(images(size=48)).shape == (2, 5)


def test_number_of_classes():
    assert small(num_classes=7)(images()).shape == (2, 7)
    assert small(num_classes=0)(images()).shape == (2, 48)


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    model = small(depth=3, drop_path_rate=0.5)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.25, 0.5])
    assert torch.equal(model(images()), model(images()))
    model.train()
    assert not torch.equal(model(images(8)), model(images(8)))


def test_projection_dropout_reaches_the_grkans():
    model = small(proj_drop_rate=0.25)
    for block in model.blocks:
        assert (block.mlp.drop1.p, block.mlp.drop2.p) == (0.25, 0.25)


@pytest.mark.parametrize(
    "arguments",
    [
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "map"},
        {"reg_tokens": 2},
        {"qk_norm": True},
        {"init_values": 0.1},
        {"scale_mlp_norm": True},
        {"pos_embed": "none"},
        {"norm_layer": "rmsnorm"},
        {"dtype": torch.float64},
    ],
)
def test_options_of_the_vision_transformer_still_work(arguments):
    model = small(**arguments)
    model(images().to(model.patch_embed.proj.weight)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


# timm's interfaces


@pytest.mark.parametrize("num_classes", [7, 0])
def test_reset_classifier(num_classes):
    model = small()
    before = model.forward_features(images())
    model.reset_classifier(num_classes)
    assert model.num_classes == num_classes
    assert model(images()).shape == (2, num_classes or 48)
    assert torch.equal(model.forward_features(images()), before)


def test_forward_is_the_head_on_the_class_token_of_the_features():
    model = small()
    features = model.forward_features(images())
    assert features.shape == (2, 1 + 4 * 4, 48)
    assert torch.equal(model(images()), model.head(features[:, 0]))
    assert torch.equal(model(images()), model.forward_head(features))


def tokens_after_each_block(model, x):
    """Return the output of each block, by forward hooks."""
    outputs = []
    hooks = [block.register_forward_hook(lambda *arguments: outputs.append(arguments[-1])) for block in model.blocks]
    model(x)
    for hook in hooks:
        hook.remove()
    return outputs


def as_map(tokens):
    return tokens[:, 1:].transpose(1, 2).reshape(2, 48, 4, 4)


def test_forward_intermediates():
    model = small(depth=3)
    expected = tokens_after_each_block(model, images())
    final, maps = model.forward_intermediates(images(), indices=[0, 2])
    assert torch.equal(final, model.forward_features(images()))
    assert len(maps) == 2
    assert torch.equal(maps[0], as_map(expected[0]))
    assert torch.equal(maps[1], as_map(expected[2]))


def test_get_intermediate_layers():
    model = small(depth=3)
    expected = tokens_after_each_block(model, images())
    last_two = model.get_intermediate_layers(images(), n=2)
    assert len(last_two) == 2
    for tokens, output in zip(last_two, expected[1:], strict=True):
        assert torch.equal(tokens, output[:, 1:])


@pytest.mark.parametrize(("arguments", "blocks"), [({"out_indices": (0, 2)}, (0, 2)), ({}, (1, 2, 3))])
def test_features_only(arguments, blocks):
    torch.manual_seed(0)
    extractor = timm.create_model("kat_tiny_patch16_224", **{**SMALL, "depth": 4}, features_only=True, **arguments)
    expected = tokens_after_each_block(small(depth=4), images())
    maps = extractor.eval()(images())
    assert extractor.feature_info.channels() == [48] * len(blocks)
    assert extractor.feature_info.reduction() == [8] * len(blocks)
    assert len(maps) == len(blocks)
    for block, feature_map in zip(blocks, maps, strict=True):
        torch.testing.assert_close(feature_map, as_map(expected[block]))


def test_torch_fx_traces_a_model_as_it_does_timms():
    model = small()
    expected = tokens_after_each_block(model, images())
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images()), model(images()))
    layer = model.blocks[1].mlp.fc1
    seen = []
    layer.register_forward_hook(lambda *args: seen.append(args[-1]))
    model(images())
    extractor = create_feature_extractor(model, ["blocks.0", "blocks.1.mlp.fc1"])
    found = extractor(images())
    torch.testing.assert_close(found["blocks.0"], expected[0])
    torch.testing.assert_close(found["blocks.1.mlp.fc1"], seen[0])
    torch.manual_seed(0)
    extractor = timm.create_model(
        "kat_tiny_patch16_224", **SMALL, features_only=True, feature_cls="fx", out_indices=(0, 1)
    )
    for tokens, output in zip(extractor.eval()(images()), expected, strict=True):
        torch.testing.assert_close(tokens, output)


def loss_and_gradients(model):
    loss = F.cross_entropy(model(images(4)), torch.arange(4))
    names, parameters = zip(*model.named_parameters(), strict=True)
    return loss, dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_gradient_checkpointing_changes_neither_loss_nor_gradients():
    model = small().train()
    loss, gradients = loss_and_gradients(model)
    model.set_grad_checkpointing()
    assert model.grad_checkpointing
    calls = []
    model.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed_loss, checkpointed_gradients = loss_and_gradients(model)
    assert len(calls) == 2  # once more on the way back: it did checkpoint
    torch.testing.assert_close(checkpointed_loss, loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed_gradients[name], gradient, rtol=1e-5, atol=1e-7)


def test_all_blocks_but_the_last_recompute_their_rationals():
    assert [block.mlp.recompute for block in small(depth=3).blocks] == [True, True, False]
    assert len(small(depth=0).blocks) == 0


@pytest.mark.parametrize("weight_init", ["kan_mimetic", "mimetic", "paper_mimetic", "kan", "variance_preserving", ""])
def test_every_parameter_receives_a_finite_gradient_that_is_not_zero(weight_init):
    for name, gradient in loss_and_gradients(small(weight_init=weight_init))[1].items():
        assert gradient.isfinite().all(), name
        assert gradient.count_nonzero(), name


def test_no_weight_decay_names_the_tokens_and_positions():
    assert {"pos_embed", "cls_token"} <= set(small().no_weight_decay())


def test_weight_decay_groups_leave_out_tokens_positions_and_biases():
    model = small()
    decayed = [
        parameter
        for group in param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
        if group["weight_decay"]
        for parameter in group["params"]
    ]
    names = {name for name, parameter in model.named_parameters() if any(parameter is other for other in decayed)}
    assert "blocks.0.mlp.fc1.weight" in names
    assert not names & {"pos_embed", "cls_token", "blocks.0.mlp.fc1.bias", "norm.weight"}


def test_layer_decay_treats_a_blocks_rationals_as_its_other_layers():
    model = small(depth=3)
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    assert len(scale) == len(parameters)
    scales = {name: scale[id(parameter)] for name, parameter in parameters.items()}
    # The stem, three blocks, then the norm and the head.
    assert scales["patch_embed.proj.weight"] == 0.5**4
    for block in range(3):
        expected = 0.5 ** (3 - block)
        assert {value for name, value in scales.items() if name.startswith(f"blocks.{block}.")} == {expected}
    assert scales["head.weight"] == 1


# State dictionaries


def test_state_dict_round_trip_gives_equal_logits(tmp_path):
    model, other = small(), small(seed=5)
    assert not torch.equal(model(images()), other(images()))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert torch.equal(model(images()), other(images()))


def test_timms_checkpoint_path_gives_equal_logits(tmp_path):
    model = small()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other = small(seed=5, checkpoint_path=str(tmp_path / "weights.pth"))
    assert torch.equal(model(images()), other(images()))


def resampled(pos_embed, size):
    """Bicubic on the grid of positions; the class token's stays."""
    token, grid = pos_embed[:, :1], pos_embed[:, 1:]
    side = round(grid.shape[1] ** 0.5)
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(size, size), mode="bicubic", antialias=True)
    return torch.cat([token, grid.permute(0, 2, 3, 1).reshape(1, size * size, -1)], dim=1)


def test_positions_are_resampled_by_timms_filter():
    source, target = small(), small(img_size=48, seed=5)
    target.load_state_dict(checkpoint_filter_fn(source.state_dict(), target))
    torch.testing.assert_close(target.pos_embed, resampled(source.pos_embed, 6))
    assert torch.equal(target.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert target(images(size=48)).shape == (2, 5)


def pretrained(source, tmp_path, **kwargs):
    """A new model that loads the source's weights the way timm loads published ones."""
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    overlay = {"file": str(path), "num_classes": SMALL["num_classes"], "input_size": (3, 32, 32)}
    return small(seed=5, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def test_pretrained_weights_load_at_another_image_size(tmp_path):
    source = small()
    target = pretrained(source, tmp_path, img_size=48)
    torch.testing.assert_close(target.pos_embed, resampled(source.pos_embed, 6))
    assert torch.equal(target.head.weight, source.head.weight)


def test_pretrained_weights_load_for_oblong_images_of_as_many_patches(tmp_path):
    source = small()
    target = pretrained(source, tmp_path, img_size=(16, 64))
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, (2, 8), old_size=(4, 4))
    assert torch.equal(target.pos_embed, expected)


def test_pretrained_weights_load_but_for_the_head_with_another_number_of_classes(tmp_path):
    source = small()
    target = pretrained(source, tmp_path, num_classes=9)
    assert target(images()).shape == (2, 9)
    assert torch.equal(target.forward_features(images()), source.forward_features(images()))


def test_pretrained_weights_need_not_be_all(tmp_path):
    """A mean over tokens has a norm of its own, which published weights lack."""
    source = small()
    with pytest.raises(InputError, match="2 missing"):
        pretrained(source, tmp_path, global_pool="avg")
    target = pretrained(source, tmp_path, global_pool="avg", pretrained_strict=False)
    assert torch.equal(target.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        pretrained(source, tmp_path, mlp_ratio=2, pretrained_strict=False)


def test_blocks_without_a_place_for_a_grkan_are_refused():
    with pytest.raises(ValueError, match="a ParallelScalingBlock has no place for a GR-KAN: choose another block_fn"):
        small(block_fn=ParallelScalingBlock)


def test_pretrained_weights_load_for_grey_images(tmp_path):
    source = small()
    target = pretrained(source, tmp_path, in_chans=1)
    expected = source.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(target.patch_embed.proj.weight, expected)


def test_dynamic_image_size_resamples_positions_as_it_goes():
    model, fixed = small(dynamic_img_size=True), small(img_size=48)
    fixed.load_state_dict({**model.state_dict(), "pos_embed": resampled(model.pos_embed, 6)})
    torch.testing.assert_close(model(images(size=48)), fixed(images(size=48)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(images()), small()(images()), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError, match="doesn't match"):
        small()(images(size=48))


# Around the model


def test_compiled_model_is_one_graph_and_gives_the_eager_result():
    model = small(depth=1).train()
    loss, gradients = loss_and_gradients(model)
    torch._dynamo.reset()
    compiled = copy.deepcopy(model)
    compiled.compile(backend="aot_eager", fullgraph=True)
    compiled_loss, compiled_gradients = loss_and_gradients(compiled)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_exported_program_gives_the_eager_result():
    model = small(depth=1)
    program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images(seed=3)), model(images(seed=3)), rtol=1e-5, atol=1e-6)


def test_autocast_to_bfloat16_stays_close_to_float32():
    model = small()
    expected = model(images(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(4))
        loss = F.cross_entropy(logits, torch.arange(4))
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.02)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_model_copies_and_pickles(duplicate):
    model = small()
    other = duplicate(model)
    assert torch.equal(other(images()), model(images()))
    with torch.no_grad():
        other.blocks[0].mlp.act1.numerator += 1
    assert not torch.equal(other(images()), model(images()))


def test_moving_average_follows_the_rationals():
    model = small()
    average = ModelEmaV3(model, decay=0.75)
    before = model.blocks[0].mlp.act2.denominator.detach().clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    average.update(model)
    torch.testing.assert_close(average.module.blocks[0].mlp.act2.denominator, before + 0.25)
