"""Without any one of PyTorch's internals the package is imported, says so once, and gives the same results."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashkat.ops import private

PACKAGE = Path(private.__file__).parents[1]

ENTRIES = [
    ("torch._C", "_len_torch_dispatch_stack"),
    ("torch._C", "_functorch.peek_interpreter_stack"),
    ("torch.nn.modules.module", "_has_any_global_hook"),
    ("torch._subclasses.functional_tensor", "FunctionalTensorMode"),
    ("torch._C", "_cuda_endAllocateToPool"),
    ("torch._C", "_StaticCudaLauncher._launch_kernel"),
]

# A fork for each entry, of a process that has imported and begun what takes seconds.
WITHOUT = """
import operator, os, sys, traceback, warnings
import torch
import timm

torch.func.jvp(torch.sin, (torch.ones(2),), (torch.ones(2),))
torch.func.vmap(torch.func.grad(torch.sin))(torch.ones(2))
torch.compile(torch.sin, backend="aot_eager")(torch.ones(2))
torch.compiler.reset()


def check(module, name):
    def without(path, *more):
        get = attrgetter(path, *more)

        def find(owner):
            if getattr(owner, "__name__", "") == module and path == name:
                raise AttributeError(name)
            return get(owner)

        return find


    attrgetter, operator.attrgetter = operator.attrgetter, without
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import flashkat
        from flashkat.models import block
        from flashkat.ops import private, rational_reference, register

        operator.attrgetter = attrgetter
        torch.manual_seed(0)
        leaves = [torch.randn(size, requires_grad=True) for size in ((5, 16), (1, 6), (4, 4))]
        x, a, b = (leaf.detach() for leaf in leaves)

        def both(call):
            torch.testing.assert_close(call(flashkat.rational), call(rational_reference))

        def step(function):
            out = function(*leaves)
            first = torch.autograd.grad(out.sum(), leaves, create_graph=True)
            many = torch.autograd.grad(out, leaves, torch.ones(2, 5, 16), is_grads_batched=True, retain_graph=True)
            return out, first, torch.autograd.grad(first[0].sum(), leaves), many

        both(step)
        both(lambda f: torch.func.grad(lambda x: f(x, a, b).square().sum())(x))
        both(lambda f: torch.func.jvp(lambda a: f(x, a, b), (a,), (a,)))
        both(lambda f: torch.func.vmap(lambda x: f(x, a, b))(x[:, None]))
        # Transformed, but not what the rational sees.
        both(lambda f: torch.func.grad(lambda y: y.sum() * f(x, a, b).sum())(x))

        layer = block.KATBlock(16, 2, mlp_layer=flashkat.GRKAN)
        half = x[None] + layer.attn(layer.norm1(x[None]))
        expected = half + layer.mlp(layer.norm2(half))
        block.fuses = lambda x: True
        torch.testing.assert_close(layer(x[None]), expected)

        # As for a GPU, where compilers take the formula.
        register.is_triton = register.has_fast_float64 = lambda device: True
        compiled = torch.compile(flashkat.rational, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(x, a, b), rational_reference(x, a, b))
            torch.compiler.reset()
        if name == "_cuda_endAllocateToPool":  # for GPUs
            private.leave_failed_capture(0, (0, 0))
        if name.startswith("_StaticCudaLauncher"):
            assert private.kernel_launcher() is None

    said = [str(each.message) for each in caught if "flashkat" in str(each.message)]
    assert len(said) == 1 and f"has no {module}.{name}: " in said[0], said


failed = []
for entry in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            check(*entry.split(":"))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(entry)
assert not failed, failed
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
def test_without_one_results_are_right_and_one_warning_says_so():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WITHOUT, *map(":".join, ENTRIES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_these_are_all_the_entries():
    looked_up = [
        tuple(argument.value for argument in node.args[:2])
        for node in ast.walk(ast.parse(Path(private.__file__).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "_find"
    ]
    assert set(looked_up) == set(ENTRIES)
    assert len(ENTRIES) <= 6


def test_nothing_private_of_pytorch_is_used_elsewhere():
    """Neither an import of an internal module, nor an internal of ``torch`` itself."""
    for path in PACKAGE.rglob("*.py"):
        if path.name == "private.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            else:
                continue
            for name in names:
                # PyTorch documents its foreach functions, and those of AOTInductor packages.
                assert not re.match(r"torch(\.\w+)*\._(?!_|foreach_|inductor\.aoti_|inductor$)", name), (
                    f"{path.name}: {name}"
                )


def test_modes_transforms_and_hooks_are_found():
    assert private.transforms_are_known
    assert private.dispatch_modes() == 0
    assert private.transform() is None
    found = []
    torch.func.vmap(lambda x: found.append(private.transform()) or x)(torch.ones(2))
    assert found[0] is not None
