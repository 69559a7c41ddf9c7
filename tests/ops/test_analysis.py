"""Kernels are analysed once, not at each call and in each pass of a compilation."""

from types import SimpleNamespace

import pytest
import torch

import flashkat
from flashkat.ops import analysis


def kernel_of(module):
    """As compilers hand a kernel over: wrapped by Triton, and at each call once more."""

    def function():
        pass

    function.__module__ = module
    return lambda: SimpleNamespace(fn=SimpleNamespace(fn=function))


@pytest.fixture
def ask():
    """A remembered analysis, which notes what it is asked."""
    asked = []

    def analyse(kernel, arguments, descriptors):
        asked.append(arguments)
        return list(arguments)

    remembered = analysis.remembered(analyse)
    return lambda kernel, **arguments: (remembered(kernel, arguments, {}), len(asked))


def test_one_answer_for_tensors_of_one_dtype_and_the_same_numbers(ask):
    kernel = kernel_of("flashkat.ops.triton.rational_kernels")
    assert ask(kernel(), x=torch.ones(2), rows=1) == (["x", "rows"], 1)
    assert ask(kernel(), x=torch.ones(3, 4), rows=1) == (["x", "rows"], 1)
    assert ask(kernel(), x=torch.ones(2).half(), rows=1)[1] == 2
    assert ask(kernel(), x=torch.ones(2), rows=2)[1] == 3
    assert ask(kernel(), x=torch.ones(2), rows=True)[1] == 4
    assert ask(kernel_of("flashkat.ops.triton.rational_kernels")(), x=torch.ones(2), rows=1)[1] == 5


def test_kernels_of_others_are_analysed_as_ever(ask):
    kernel = kernel_of("flashkat_of_others.ops")
    assert [ask(kernel(), x=1)[1] for _ in range(3)] == [1, 2, 3]


@pytest.mark.gpu
def test_a_compilation_translates_each_kernel_once(monkeypatch):
    from torch._higher_order_ops import triton_kernel_wrap

    translate, translated = triton_kernel_wrap.generate_ttir, []
    monkeypatch.setattr(
        triton_kernel_wrap, "generate_ttir", lambda *args: (translated.append(args[0]), translate(*args))[1]
    )
    torch.compiler.reset()
    x = torch.randn(2, 7, 48, device="cuda", requires_grad=True)
    a, b = torch.randn(1, 5, device="cuda", requires_grad=True), torch.randn(6, 3, device="cuda", requires_grad=True)

    def several(x, a, b):
        for _ in range(4):
            x = flashkat.rational(x, a, b).sin()
        return x

    out = torch.compile(several, fullgraph=True)(x, a, b)
    torch.autograd.grad(out.sum(), (x, a, b))
    assert 1 <= len(translated) <= 3
