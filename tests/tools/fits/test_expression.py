"""Functions written as text: what they compute, and that nothing else is run."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashkat.errors import InputError
from flashkat.tools.fits.expression import Expression

X = torch.linspace(-3, 3, 601, dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("x*sin(x)", lambda x: x * torch.sin(x)),
        ("-x**2 + 2*x - 1", lambda x: -(x**2) + 2 * x - 1),
        (" +x / (1 + exp(-x)) ", torch.nn.functional.silu),
        ("2**-x", lambda x: 2**-x),
        ("pi*e", lambda x: torch.full_like(x, math.pi * math.e)),
        ("1_0 + 0x10", lambda x: torch.full_like(x, 26)),
        ("where(x<0, 0.1*x, x)", lambda x: torch.nn.functional.leaky_relu(x, 0.1)),
        ("(x>=1) - (x<=-1)", lambda x: (x >= 1).double() - (x <= -1).double()),
        ("min(max(x, -1), 1)", lambda x: x.clamp(-1, 1)),
        ("gelu(x) + atan2(x, 2)", lambda x: torch.nn.functional.gelu(x) + torch.atan2(x, torch.tensor(2.0).double())),
        ("x*sigmoid(1.702*x)", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
def test_it_computes_what_it_says(text, function):
    torch.testing.assert_close(Expression(text)(X), function(X), rtol=1e-12, atol=1e-12)


def test_its_name_is_the_formula_without_comments():
    assert Expression("x*sin( x )#$y$").name == "x * sin(x)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no formula"),
        ("x +", "is no formula: write it as in"),
        ("x = 3", "is no formula"),
        ("x\n+1", "is no formula"),
        ("x\0", "is no formula"),
        ("(" * 300, "is no formula"),
        ("-" * 390 + "x", "nested more than 64 levels deep"),
        ("+".join("x" * 200), "nested more than 64 levels deep"),
        ("x" * 401, "at most 400 characters, not 401"),
        ("x^2", r"\^ is no power: write x\*\*2"),
        ("y", "y is unknown: the variable is x"),
        ("sin", r"sin is a function: write sin\(x\)"),
        ("sine(x)", "no function sine: did you mean 'sin'"),
        ("print(x)", "there is no function print"),
        ("sin(x, x)", "sin takes 1 argument, not 2"),
        ("where(x)", "where takes 3 arguments, not 1"),
        ("sin(x=x)", "numbers, x"),
        ("sin(*x)", "numbers, x"),
        ("np.sin(x)", r"write sin\(x\) without a module's name"),
        ("x.real", "numbers, x"),
        ("x[0]", "numbers, x"),
        ("'x'", "numbers, x"),
        (r"'\d'", "numbers, x"),
        ("1j", "numbers, x"),
        ("True", "numbers, x"),
        ("None", "numbers, x"),
        ("x // 2", "numbers, x"),
        ("x @ x", "numbers, x"),
        ("1 << 999", "numbers, x"),
        ("not x", "numbers, x"),
        ("~x", "numbers, x"),
        ("x and x", "numbers, x"),
        ("0 < x < 1", "numbers, x"),
        ("x == 1", "numbers, x"),
        ("x if x else x", "numbers, x"),
        ("lambda: x", "numbers, x"),
        ("(y := x)", "numbers, x"),
        ("[x]", "numbers, x"),
        ("[x for x in x]", "numbers, x"),
        ("f'{x}'", "numbers, x"),
        ("x.__class__.__mro__", "numbers, x"),
        ("__import__('os').system('true')", "numbers, x"),
        ("sin(x).__class__(x)", "numbers, x"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=words) as caught:
            Expression(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["9**9**9**9**9", "x*" + "9" * 350, "-" * 60 + "x", "sin(" * 60 + "x" + ")" * 60])
def test_what_would_take_python_long_is_computed_at_once(text):
    assert Expression(text)(X).shape == X.shape


TEXTS = st.recursive(
    st.sampled_from(["x", "2", "0.5", "pi", "1e300"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**", "<"]), inner).map(
            lambda parts: f"({''.join(parts)})"
        ),
        st.tuples(st.sampled_from(["sin", "exp", "log", "relu", "-"]), inner).map(
            lambda parts: f"{parts[0]}({parts[1]})"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_every_formula_has_a_value_everywhere(text):
    y = Expression(text)(X)
    assert y.shape == X.shape
    assert y.dtype == torch.float64


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("x1.e9*+-/()<>=,: sincoxp_[]{}'\"#\\\n\t^!@&|~%lambdif"), max_size=40))
def test_no_text_fails_in_another_way(text):
    try:
        found = Expression(text)
    except InputError:
        return
    assert found(X).shape == X.shape
