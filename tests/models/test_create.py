"""create_model: timm's, with None for the default, one line for each mistake, and published weights by name."""

import json
import logging
import pickle

import pytest
import timm
import torch
from foreign import KAT, SMALL, existing_code, images, vit
from huggingface_hub.utils import LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.models import _hub

from flashkat.checkpoints.export import renamed_for
from flashkat.errors import InputError, UnreachableError
from flashkat.models import KolmogorovArnoldTransformer, create_model

QUICK = {"img_size": 32, "depth": 1, "weight_init": "skip"}


def message(name, **kwargs):
    with pytest.raises(InputError) as caught:
        create_model(name, **{**QUICK, **kwargs})
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


TAGGED = [
    f"{prefix}_{size}{suffix}_patch16_224{tag}"
    for prefix in ("kat", "flash_kat")
    for size in ("tiny", "small", "base")
    for suffix in ("", "_swish", "_gelu")
    for tag in ("", ".vitft")
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A folder that stands for the Hub, OWNER/NAME/FILE, and the list of what was asked for."""
    asked = []

    def download(repo_id, filename, **kwargs):
        asked.append((repo_id, filename))
        path = tmp_path / repo_id / filename
        if not path.is_file():
            raise _hub.EntryNotFoundError(f"no {filename} in {repo_id}")
        return str(path)

    monkeypatch.setattr(_hub, "hf_hub_download", download)

    def publish(repository):
        folder = tmp_path / repository
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    publish.asked = asked
    return publish


def expected_logits(theirs, **kwargs):
    torch.manual_seed(3)
    model = timm.create_model("kat_tiny_patch16_224", **{**SMALL, "num_classes": 1000, **kwargs}).eval()
    model.load_state_dict(renamed_for(theirs.state_dict(), "timm", "theirs"))
    return model(images())


def file_of(name):
    return timm.get_pretrained_cfg(name).hf_hub_filename


def configuration(**model_args):
    return {
        "architecture": "kat_tiny_patch16_224",
        "num_classes": 1000,
        "num_features": 48,
        "global_pool": "token",
        "model_args": {key: value for key, value in SMALL.items() if key != "num_classes"},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, 32, 32],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 1000,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        **model_args,
    }


def fill(folder, theirs, file, **model_args):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configuration(**model_args)))
    if file.endswith(".safetensors"):
        save_file(theirs.state_dict(), folder / file)
    else:
        torch.save(theirs.state_dict(), folder / file)


def test_creates_the_model_timm_does():
    arguments = {"img_size": 32, "depth": 1, "num_classes": 5}
    torch.manual_seed(0)
    model = create_model("flash_kat_tiny_gelu_patch16_224", **arguments)
    torch.manual_seed(0)
    expected = timm.create_model("flash_kat_tiny_gelu_patch16_224", **arguments)
    assert type(model) is KolmogorovArnoldTransformer
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("content", ["{}", "[1]", "5", "text", '{"architecture": 5}', '{"pretrained_cfg": 3}'])
def test_a_folder_whose_configuration_is_of_no_model(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        InputError, match=r"^the config.json of local-dir:.* describes no model of timm's: take a folder"
    ):
        create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_creates_timms_own_models_too():
    assert create_model("test_vit", num_classes=3).num_classes == 3


def test_none_means_the_models_own_default():
    model = create_model(
        "kat_tiny_patch16_224",
        num_classes=None,
        img_size=None,
        in_chans=None,
        drop_path_rate=None,
        drop_rate=None,
        den_groups=None,
        act_init=None,
        weight_init=None,
        depth=1,
    )
    assert model.num_classes == 1000
    assert model.patch_embed.img_size == (224, 224)
    assert model.blocks[0].mlp.act2.groups == 8
    assert model.blocks[0].mlp.act2.start == "swish"
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_false_and_zero_are_not_none():
    model = create_model("kat_tiny_patch16_224", num_classes=0, qkv_bias=False, n=0, **QUICK)
    assert model.num_classes == 0
    assert model.blocks[0].attn.qkv.bias is None
    assert model.blocks[0].mlp.act1.denominator.shape == (8, 0)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("kat_tiny_patch16_225", "kat_tiny_patch16_224"),
        ("kat_tiny_patch16", "kat_tiny_patch16_224"),
        ("flashkat_small_patch16_224", "flash_kat_small_patch16_224"),
        ("kat_base_gelu_patch16_244", "kat_base_gelu_patch16_224"),
        # timm's coat_tiny and catavgmax are nearer, by letters.
        ("kat_tinny", "kat_tiny_patch16_224"),
        ("KAT_Small", "kat_small_patch16_224"),
        ("flash-kat-base", "flash_kat_base_patch16_224"),
        ("resnet5O", "resnet50"),
    ],
)
def test_an_unknown_name_gets_the_nearest_as_a_suggestion(name, nearest):
    text = message(name)
    assert repr(name) in text
    assert f"did you mean {nearest!r}" in text


@pytest.mark.parametrize("name", ["", "zzzzzzzz"])
def test_an_unknown_name_that_is_near_to_nothing_is_told_where_to_look(name):
    text = message(name)
    assert repr(name) in text
    assert "timm.list_models()" in text


def test_groups_that_do_not_divide_the_channels_are_named_with_them():
    text = message("kat_tiny_patch16_224", den_groups=7)
    assert "192 channels do not divide into 7 groups" in text
    assert "den_groups=7" in text
    assert "kat_tiny_patch16_224" in text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"num_groups": 2, "den_groups": 8}, ("2 and 8",)),
        ({"m": 1}, ("m=1", "m >= 2")),
        ({"n": -1}, ("n=-1",)),
        ({"act_init": "swoosh"}, ("'swoosh'", "swish", "gelu")),
        ({"bogus": 3}, ("--model-kwargs bogus=3", "kat_tiny_patch16_224 takes no bogus")),
        ({"den_group": 3}, ("takes no den_group", "are den_groups, num_groups")),
        ({"depth": "two"}, ("--model-kwargs depth=two", "a whole number, as in depth=12")),
        ({"depth": 2.5}, ("--model-kwargs depth=2.5", "a whole number")),
        ({"m": "six"}, ("--model-kwargs m=six", "a whole number, as in m=6")),
        ({"proj_drop_rate": "much"}, ("--model-kwargs proj_drop_rate=much", "a number, as in proj_drop_rate=0.0")),
        ({"img_size": 33, "patch_size": 8}, ("--img-size 33", "patches of 8 pixels", "give 32 or 40,")),
        ({"img_size": (64, 30)}, ("--input-size with a side of 30 ", "patches of 16 pixels", "give 16 or 32,")),
        ({"img_size": 3}, ("--img-size 3 ", "give 16,", "dynamic_img_pad=True")),
        ({"num_heads": 5}, ("num_heads=5", "divisible")),
        ({"class_token": False}, ("class_token=False",)),  # not every timm says why
        ({"global_pool": "most"}, ("global_pool=most",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_in_the_arguments_is_explained_in_one_line(arguments, parts):
    text = message("kat_tiny_patch16_224", **arguments)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    "arguments", [{"weight_init": "kann"}, {"checkpoint_path": "no/such/file.pth"}, {"patch_size": 0}, {"embed_dim": 0}]
)
def test_a_mistake_that_timm_does_not_explain_is_explained(arguments):
    reason = message("kat_tiny_patch16_224", **arguments).rsplit(": ", 1)[1]
    assert reason
    assert "Error" not in reason


def test_an_unknown_tag_of_pretrained_weights_is_explained():
    assert "tag (nonsense)" in message("kat_tiny_patch16_224.nonsense")


def test_the_original_error_stays_attached():
    with pytest.raises(InputError) as caught:
        create_model("kat_tiny_patch16_224", den_groups=7, **QUICK)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [ValueError("first line\nsecond line"), RuntimeError("  \n"), KeyError("")])
def test_an_error_of_any_shape_becomes_one_line(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    text = message("kat_tiny_patch16_224")
    assert text.split(": ", 1)[1]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_what_is_not_the_users_mistake_is_left_alone(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(type(error)):
        create_model("kat_tiny_patch16_224")


def test_an_unknown_argument_of_timms_own_models():
    assert "--model-kwargs widht=3: test_resnet takes no widht" in message(
        "test_resnet", img_size=None, depth=None, weight_init=None, widht=3
    )


def test_an_image_size_that_is_padded():
    model = create_model(
        "kat_tiny_patch16_224", **QUICK | {"img_size": 33}, dynamic_img_size=True, dynamic_img_pad=True
    )
    assert model(torch.zeros(1, 3, 33, 33)).shape == (1, 1000)


@pytest.mark.parametrize(("offline", "words"), [(False, "cannot be reached"), (True, "was not downloaded before")])
def test_a_hub_that_cannot_be_reached(offline, words, monkeypatch):
    logger = logging.getLogger("huggingface_hub.utils")
    told = logger.isEnabledFor(logging.WARNING)

    def fail(*args, **kwargs):
        assert not logger.isEnabledFor(logging.WARNING)  # of each retry
        raise LocalEntryNotFoundError("look at your cable")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(InputError, match=words) as caught:
        create_model("kat_tiny_patch16_224", pretrained=True)
    assert isinstance(caught.value, UnreachableError) != offline
    assert logger.isEnabledFor(logging.WARNING) is told


def test_all_published_weights_are_promised_and_no_others():
    ours = {name for name in timm.list_pretrained() if name.startswith(("kat_", "flash_kat_"))}
    assert {name for name in TAGGED if name.endswith(".vitft")} <= ours
    assert {name.removesuffix(".vitft") for name in ours} == {name.removesuffix(".vitft") for name in TAGGED}


@pytest.mark.parametrize("name", TAGGED)
def test_each_name_and_tag_means_the_published_file(name):
    configuration = timm.get_pretrained_cfg(name)
    assert configuration.hf_hub_id == "adamdad/kat_pretained"
    size = next(size for size in ("tiny", "small", "base") if f"_{size}_" in name)
    assert configuration.hf_hub_filename.startswith(f"kat_{size}_patch")
    assert ("finetune" in configuration.hf_hub_filename) == name.endswith(".vitft")
    sha256 = configuration.hf_hub_filename.removesuffix(".pth").rpartition("_")[2]
    assert len(sha256) == 64
    assert set(sha256) <= set("0123456789abcdef")
    assert configuration.input_size == (3, 224, 224)
    assert (configuration.crop_pct, configuration.interpolation) == (0.875, "bicubic")


def test_the_six_files_are_different():
    assert len({file_of(name) for name in TAGGED}) == 6


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("name", ["kat_tiny_patch16_224", "kat_tiny_patch16_224.vitft", "flash_kat_tiny_patch16_224"])
def test_pretrained_by_name_and_tag(name, wrap, hub):
    theirs = existing_code(KAT, num_classes=1000)
    folder = hub("adamdad/kat_pretained")
    torch.save(wrap(theirs.state_dict()), folder / file_of(name))
    model = timm.create_model(name, pretrained=True, **{**SMALL, "num_classes": 1000}).eval()
    assert ("adamdad/kat_pretained", file_of(name)) in hub.asked
    assert torch.equal(model(images()), expected_logits(theirs))


def test_pretrained_for_other_classes_and_sizes(hub):
    theirs = existing_code(KAT, num_classes=1000)
    folder = hub("adamdad/kat_pretained")
    torch.save(theirs.state_dict(), folder / file_of("kat_tiny_patch16_224"))
    model = timm.create_model("kat_tiny_patch16_224", pretrained=True, **{**SMALL, "img_size": 48}).eval()
    assert model(images(size=48)).shape == (2, 5)
    assert torch.equal(model.blocks[1].mlp.act2.denominator, theirs.blocks[1].mlp.act2.weight_denominator)
    assert model.pos_embed.shape == (1, 1 + 36, 48)


@pytest.mark.parametrize("classes", [5, 1000])
def test_pretrained_weights_of_another_model_are_refused_in_one_line(classes, hub):
    folder = hub("adamdad/kat_pretained")
    state = existing_code(KAT, num_classes=1000).state_dict()
    del state["norm.weight"]
    torch.save(state, folder / file_of("kat_tiny_patch16_224"))
    with pytest.raises(InputError, match=r"1 missing \(norm.weight\)$"):
        create_model("kat_tiny_patch16_224", pretrained=True, **{**SMALL, "num_classes": classes})


def test_a_vit_as_pretrained_weights_leaves_the_rationals_at_their_starts(tmp_path):
    source = vit()
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    overlay = {"file": str(tmp_path / "vit.pth"), "num_classes": 5}
    model = timm.create_model("kat_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    assert torch.equal(model.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)
    x = torch.linspace(-3, 3, 48)
    assert torch.equal(model.blocks[0].mlp.act1(x), x)


@pytest.mark.parametrize("source", ["hf_hub:", "hf-hub:"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("repository", ["adamdad/kat_tiny_patch16_224", "adamdad/kat_tiny_patch16_224.vitft"])
def test_repositories_on_the_hub(source, file, repository, hub):
    theirs = existing_code(KAT, num_classes=1000)
    fill(hub(repository), theirs, file)
    model = create_model(source + repository, pretrained=True).eval()
    assert torch.equal(model(images()), expected_logits(theirs))


@pytest.mark.parametrize("file", ["model.safetensors", "weights.pth"])
def test_local_folders(file, tmp_path):
    theirs = existing_code(KAT, num_classes=1000)
    fill(tmp_path / "model", theirs, file)
    model = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert torch.equal(model(images()), expected_logits(theirs))
    model = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, num_classes=7)
    assert model(images()).shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["local-dir:nowhere", "hf_hub:nobody/nothing", "hf_hub:", "kat_tiny_patch16_224.vitft"]
)
def test_weights_that_cannot_be_had_are_explained_in_one_line(name, hub):
    with pytest.raises(InputError) as caught:
        create_model(name, pretrained=True, **({} if ":" in name else SMALL))
    assert str(caught.value).startswith(f"cannot create {name} with pretrained=True")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight_init", ["kan_mimetic", "variance_preserving"])
def test_a_model_that_starts_from_any_function_can_be_pickled(weight_init):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 48, "depth": 1, "m": 5}
    model = create_model("kat_tiny_patch16_224", act_init=lambda x: x.sin(), weight_init=weight_init, **sizes)
    rational = pickle.loads(pickle.dumps(model)).blocks[0].mlp.act2
    x = torch.linspace(-3, 3, 192)
    torch.testing.assert_close(rational(x), x.sin(), rtol=0, atol=0.05)
    assert rational.start.name == "<lambda>"
    with pytest.raises(InputError, match="log is not finite at x=-3"):
        create_model("kat_tiny_patch16_224", act_init=torch.log, **sizes)
