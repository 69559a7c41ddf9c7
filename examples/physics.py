"""Solve a differential equation with a physics-informed network, which needs second derivatives of the rationals.

The equation is Poisson's on the unit square: -(u_xx + u_yy) = 2 pi^2 sin(pi x) sin(pi y), and u = 0 on the edges.
Its solution is sin(pi x) sin(pi y). Training differentiates the second derivatives again.
"""

import argparse
import math

import torch
from torch import Tensor, nn

import flashkat

GROUPS = 4


def network(activation: str, width: int) -> nn.Sequential:
    """Return a network of two hidden layers from points (N, 2) to values (N, 1)."""

    def act() -> nn.Module:
        return nn.Tanh() if activation == "tanh" else flashkat.GroupRational(width, GROUPS, start="tanh")

    return nn.Sequential(nn.Linear(2, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 1)).double()


def solution(points: Tensor) -> Tensor:
    """Return the exact solution at points (N, 2), as (N, 1)."""
    return torch.sin(math.pi * points).prod(dim=1, keepdim=True)


def laplacian(model: nn.Module, points: Tensor) -> Tensor:
    """Return u_xx + u_yy at points (N, 2), as (N, 1)."""
    points = points.requires_grad_()
    (gradient,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
    second = [torch.autograd.grad(gradient[:, axis].sum(), points, create_graph=True)[0][:, axis] for axis in (0, 1)]
    return torch.stack(second).sum(dim=0)[:, None]


def edge_points(count: int) -> Tensor:
    """Return random points on each of the four edges."""
    along = torch.rand(4, count, dtype=torch.float64)
    fixed = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)[:, None].expand_as(along)
    return torch.cat([torch.stack([fixed, along], -1)[:2], torch.stack([along, fixed], -1)[2:]]).flatten(0, 1)


def largest_error(model: nn.Module) -> float:
    """Return the largest error on a grid of 51 x 51 points."""
    axis = torch.linspace(0, 1, 51, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        return (model(grid) - solution(grid)).abs().max().item()


def solve(activation: str, width: int, steps: int) -> float:
    """Train a network by L-BFGS on fixed points, and return the largest error of its solution."""
    torch.manual_seed(0)
    model, inside, edge = network(activation, width), torch.rand(400, 2, dtype=torch.float64), edge_points(50)
    source = 2 * math.pi**2 * solution(inside)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = (laplacian(model, inside) + source).square().mean() + 100 * model(edge).square().mean()
        total.backward()
        return total

    optimizer.step(loss)
    return largest_error(model)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Solve the equation with rationals and with tanh, and return the largest error of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=32, help="neurons of a hidden layer")
    parser.add_argument("--steps", type=int, default=300, help="iterations of L-BFGS")
    args = parser.parse_args(argv)
    errors = {activation: solve(activation, args.width, args.steps) for activation in ("tanh", "rational")}
    for activation, error in errors.items():
        print(f"{activation:8}  largest error {error:.2e}")
    return errors


if __name__ == "__main__":
    main()
