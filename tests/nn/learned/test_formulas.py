"""Formulas of a rational."""

import numpy as np
import pytest
import sympy
import torch

from flashkat.nn.learned.formulas import latex, numpy_function, python, sympy_expression, text
from flashkat.ops import rational_reference

X = sympy.Symbol("x", real=True)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.0, 1.0], [0.0], "1 x"),
        ([0.5, -1.25, 0.0, 2.0], [], "0.5 - 1.25 x + 2 x^3"),
        ([-0.5, 1.0], [-0.25, 0.0, 3.0], "(-0.5 + 1 x) / (1 + 0.25 |x| + 3 |x|^3)"),
        ([0.0], [], "0"),
        ([1e-9], [1.0], "(1e-09) / (1 + 1 |x|)"),
        ([0.123456], [], "0.1235"),
    ],
)
def test_text(a, b, expected):
    assert text(a, b) == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.5, -1.25, 2.0], [], r"0.5 - 1.25\,x + 2\,x^{2}"),
        ([0.0, 1.0], [-0.25, 3.0], r"\frac{1\,x}{1 + 0.25\,|x| + 3\,|x|^{2}}"),
        ([2e-7, 1.0], [], r"2 \cdot 10^{-7} + 1\,x"),
        ([0.0, 2e-7], [], r"2 \cdot 10^{-7}\,x"),
    ],
)
def test_latex(a, b, expected):
    assert latex(a, b) == expected


@pytest.mark.parametrize("a", [[0.1, -0.7, 0.3], [2.0], [0.0, 0.0], [1e-12, 3.0]])
@pytest.mark.parametrize("b", [[], [0.0], [-0.5, 0.25]])
def test_every_formula_is_the_definition(a, b):
    x = np.linspace(-5, 5, 21)
    tables = torch.tensor([a], dtype=torch.float64), torch.tensor(b, dtype=torch.float64)[None]
    expected = rational_reference(torch.from_numpy(x)[:, None], *tables)[:, 0].numpy()
    np.testing.assert_allclose(numpy_function(a, b)(x), expected, rtol=1e-12)
    np.testing.assert_allclose(eval(python(a, b), {"x": x}), expected, rtol=1e-12)
    np.testing.assert_allclose(eval(python(a, b), {"x": torch.from_numpy(x)}), expected, rtol=1e-12)
    expression = sympy_expression(a, b)
    np.testing.assert_allclose([float(expression.subs(X, each)) for each in x], expected, rtol=1e-9)


def test_python_has_every_digit_of_the_coefficients():
    number = torch.tensor(0.1)
    assert python([0.0, float(number)], []) == "0.100000001*x"
    assert torch.tensor(eval(python([0.0, float(number)], []), {"x": 1.0})) == number
    assert eval(python([0.0, 0.1], []), {"x": 1.0}) == 0.1
    assert eval(python([0.0, 1 / 3], []), {"x": 1.0}) == 1 / 3


def test_a_function_keeps_the_shape():
    function = numpy_function([1.0], [0.5])
    assert function(2.0).shape == ()
    assert function(np.zeros((2, 3), np.float32)).shape == (2, 3)
    assert function(np.zeros(2, np.float32)).dtype == np.float64
