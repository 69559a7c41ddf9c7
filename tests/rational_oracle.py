"""The formula of a rational, and parameters and inputs that look trained."""

import torch


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
