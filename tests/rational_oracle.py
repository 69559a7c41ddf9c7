"""The formula of a rational, and parameters and inputs that look trained."""

import torch

CASES = [
    {},
    {"shape": (2, 8, 3), "dim": 1, "shared": (False, True)},
    {"shape": (4,), "m": 1, "n": 0, "shared": (False, False)},
    {"shape": (2, 4), "m": 3, "n": 2, "shared": (True, True), "groups": 1},
]
"""Arguments of :func:`leaves`: the last and another dimension, few coefficients, and each way to share them."""


def by_formula(x, numerator, denominator, groups):
    """P(x) / Q(x) in float64, group by group and power by power, channels last."""
    outputs = []
    for index, part in enumerate(x.double().chunk(groups, dim=-1)):
        a = numerator.double()[index % len(numerator)]
        b = denominator.double()[index % len(denominator)]
        top = sum(a[power] * part**power for power in range(len(a)))
        bottom = 1 + sum(b[power].abs() * part.abs() ** (power + 1) for power in range(len(b)))
        outputs.append(top / bottom)
    return torch.cat(outputs, dim=-1)


def perturb(module, seed=0, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


def noise(*shape, seed=1, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**kwargs)


def leaves(device, dtype=torch.float64, shape=(3, 5, 8), groups=4, m=6, n=4, dim=-1, shared=(True, False)):
    """x, numerator and denominator, which require gradients."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    a = torch.randn(1 if shared[0] else groups, m, generator=generator, dtype=torch.float64)
    b = torch.randn(1 if shared[1] else groups, n, generator=generator, dtype=torch.float64)
    return [tensor.to(device, dtype).requires_grad_() for tensor in (x, a, b)]


def with_gradient(shape, groups=4, dim=-1, dtype=torch.float32, m=6, n=4):
    """The gradient of the result, x, numerator, denominator and the dimension, for the paths themselves."""
    generator = torch.Generator().manual_seed(11)
    x, g = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return g, x, torch.randn(1, m, generator=generator), torch.randn(groups, n, generator=generator), dim


def evaluate(numerator, denominator, x):
    """P(x) / Q(x) by its formula, power by power, in float64."""
    top = sum(a * x**power for power, a in enumerate(numerator.tolist()))
    bottom = 1 + sum(abs(b) * x.abs() ** power for power, b in enumerate(denominator.tolist(), start=1))
    return top / bottom


def grid(low=-3.0, high=3.0, points=6001):
    return torch.linspace(low, high, points, dtype=torch.float64)


def largest_error(coefficients, function, x):
    return float((evaluate(*coefficients, x) - function(x)).abs().max())
