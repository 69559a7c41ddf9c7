"""Google's ViT files load to exactly equal logits, or say what is wrong with them."""

import numpy as np
import pytest
import torch
from foreign import google_arrays, images, ours, vit, write_npz

from flashkat import checkpoints
from flashkat.errors import InputError


def load(path, model=None, **options):
    model = model or ours()
    checkpoints.load_weights(model, checkpoints.weights(checkpoints.read(path), **options), str(path))
    return model


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
