"""Published weights by name and tag, from the Hub and from folders; the Hub's downloads are local files here."""

import json

import pytest
import timm
import torch
from foreign import KAT, SMALL, existing_code, images, vit
from safetensors.torch import save_file
from timm.models import _hub

from flashkat.checkpoints.export import renamed_for
from flashkat.errors import InputError
from flashkat.models import create_model

TAGGED = [
    f"{prefix}_{size}{suffix}_patch16_224{tag}"
    for prefix in ("kat", "flash_kat")
    for size in ("tiny", "small", "base")
    for suffix in ("", "_swish")
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


def test_all_published_weights_are_promised_and_no_others():
    ours = {name for name in timm.list_pretrained() if name.startswith(("kat_", "flash_kat_"))}
    assert {name for name in TAGGED if name.endswith(".vitft")} <= ours
    assert {name.removesuffix(".vitft") for name in ours} == {name.removesuffix(".vitft") for name in TAGGED}
    assert not [name for name in ours if "gelu" in name]


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
