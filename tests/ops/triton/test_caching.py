"""Compiled code on disk is not found by another version of the operator."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import flashkat
from flashkat.ops.triton import caching


@pytest.fixture
def tag():
    """PyTorch's setting, put back at the end; what sets it forgets that it did."""
    with torch.compiler.config.patch(cache_key_tag=""):
        caching.distinguish_caches.cache_clear()
        yield lambda: torch.compiler.config.cache_key_tag


def test_importing_has_told_pytorch():
    assert "flashkat-" in torch.compiler.config.cache_key_tag


def test_a_tag_that_is_there_is_kept(tag):
    torch.compiler.config.cache_key_tag = "mine"
    for _ in range(2):
        caching.distinguish_caches()
    assert tag().startswith("mine flashkat-")
    assert tag().count("flashkat") == 1


def test_a_version_is_of_names_and_contents(tmp_path):
    def version(**files):
        for path in tmp_path.iterdir():
            path.unlink()
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return caching.version_of_sources(tmp_path)

    versions = [version(a="x", b="y"), version(a="y", b="x"), version(a="x"), version(a="x", c="y")]
    assert len(set(versions)) == len(versions)
    assert version(b="y", a="x") == versions[0]


def test_another_version_compiles_anew(tag, monkeypatch):
    def compiled():
        """Whether a compilation was found on disk."""
        torch.compiler.reset()
        counters.clear()
        x = torch.randn(2, 4)
        torch.compile(lambda x: flashkat.rational(x, torch.ones(1, 2), torch.ones(1, 1)).sin())(x)
        return bool(counters["aot_autograd"]["autograd_cache_hit"])

    with fresh_cache():
        caching.distinguish_caches()
        assert [compiled(), compiled()] == [False, True]
        caching.distinguish_caches.cache_clear()
        torch.compiler.config.cache_key_tag = ""
        monkeypatch.setattr(caching, "version_of_sources", lambda folder: "another")
        caching.distinguish_caches()
        assert not compiled()
    torch.compiler.reset()
