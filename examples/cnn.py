"""Train a convolutional network with rationals in place of ReLU: on CIFAR-10, or on digits without a download."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flashkat


def layer(channels: int, out_channels: int, stride: int, activation: str) -> nn.Sequential:
    """Return convolution, batch norm and activation. The channels of NCHW images are dimension 1."""
    rational = flashkat.GroupRational(out_channels, groups=8, start="relu", dim=1)
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        rational if activation == "rational" else nn.ReLU(),
    )


def network(channels: int, width: int, activation: str) -> nn.Sequential:
    """Return three stages of two layers, each twice as wide and half as large as the one before."""
    layers: list[nn.Module] = []
    for stage in range(3):
        out_channels = width * 2**stage
        layers.append(layer(channels, out_channels, 2 if stage else 1, activation))
        layers.append(layer(out_channels, out_channels, 1, activation))
        channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images (N, 1, 8, 8) and labels of scikit-learn's digits, for training and for evaluation."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float)[:, None] / 16
    parts = train_test_split(images, torch.tensor(data.target), test_size=0.2, stratify=data.target, random_state=0)
    train, val, labels, val_labels = parts
    return train, labels, val, val_labels


def cifar10(folder: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images (N, 3, 32, 32) and labels of CIFAR-10, downloaded to a folder once."""
    from torchvision.datasets import CIFAR10

    sets = [CIFAR10(folder, train=is_training, download=True) for is_training in (True, False)]
    found = [(torch.tensor(each.data).permute(0, 3, 1, 2) / 255, torch.tensor(each.targets)) for each in sets]
    return (*found[0], *found[1])


def augmented(images: Tensor, flips: bool) -> Tensor:
    """Return images shifted by up to an eighth of their side, and half of them mirrored if that keeps their class."""
    side = images.shape[-1]
    padded, most = F.pad(images, [side // 8] * 4), 2 * (side // 8) + 1
    top, left = torch.randint(most, (2,)).tolist()
    shifted = padded[..., top : top + side, left : left + side]
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, shifted.flip(-1), shifted) if flips else shifted


def train(data: tuple[Tensor, Tensor, Tensor, Tensor], activation: str, args: argparse.Namespace) -> float:
    """Train a network, and return its accuracy on the images for evaluation."""
    images, labels, val, val_labels = (each.to(args.device) for each in data)
    torch.manual_seed(0)
    model = network(images.shape[1], args.width, activation).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    updates = args.epochs * (len(images) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=updates)
    for _ in range(args.epochs):
        model.train()
        for chosen in torch.randperm(len(images), device=args.device).split(args.batch_size):
            if len(chosen) == args.batch_size:
                loss = F.cross_entropy(model(augmented(images[chosen], flips=bool(args.cifar10))), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum() for x, y in zip(val.split(500), val_labels.split(500), strict=True))
    accuracy = (right / len(val)).item()
    print(f"{activation:8}  {accuracy:.2%} of {len(val):,} images right after {args.epochs} epochs")
    return accuracy


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train with both activations, and return their accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", metavar="DIR", help="folder for CIFAR-10 (default: digits)")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage, a multiple of 8")
    parser.add_argument("--epochs", type=int, default=10, help="epochs")
    parser.add_argument("--batch-size", type=int, default=64, help="images of an update")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    args = parser.parse_args(argv)
    data = cifar10(args.cifar10) if args.cifar10 else digits()
    return {activation: train(data, activation, args) for activation in ("relu", "rational")}


if __name__ == "__main__":
    main()
