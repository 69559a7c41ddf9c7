"""Inputs, and truth in float64, for the addition, LayerNorm and rational."""

import torch
import torch.nn.functional as F

from flashkat.ops import rational_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where there is no GPU, Triton interprets
F32, BF16 = torch.float32, torch.bfloat16


def make(shape, groups=8, rows=1, dtypes=(F32, BF16, BF16), m=6, n=4, scale=1.0, device=DEVICE):
    """x, branch, weight, bias, numerator, denominator, and gradients of sum and result."""
    generator = torch.Generator().manual_seed(5)

    def normal(*size, dtype=F32):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).to(device)

    channels = shape[-1]
    inputs = [normal(*shape, dtype=dtypes[0]), normal(*shape, dtype=dtypes[1])]
    inputs += [scale * normal(channels), normal(channels), normal(rows, m), normal(groups, n)]
    return inputs, normal(*shape, dtype=torch.promote_types(*dtypes[:2])), normal(*shape, dtype=dtypes[2])


def exact(inputs, grad_total, grad_out, eps, total=None):
    """The results and the gradients in float64; normalised is what is rounded to ``total``, if given."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    added = leaves[0] + leaves[1]
    if total is not None:
        added = added + (total.double() - added).detach()
    out = rational_reference(F.layer_norm(added, leaves[2].shape, leaves[2], leaves[3], eps), leaves[4], leaves[5])
    grads = torch.autograd.grad([added, out], leaves, [grad_total.double(), grad_out.double()], materialize_grads=True)
    return added.detach(), out.detach(), grads
