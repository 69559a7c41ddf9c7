"""Turn a trained ViT into a KAT, and go on training both: on scikit-learn's digits."""

import argparse
import copy

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flashkat


def digits(side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images (N, 3, side, side) and labels of scikit-learn's digits, for training and for evaluation."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float)[:, None].expand(-1, 3, -1, -1) / 8 - 1
    images = F.interpolate(images, (side, side), mode="bilinear")
    parts = train_test_split(images, torch.tensor(data.target), test_size=0.2, stratify=data.target, random_state=0)
    train, val, labels, val_labels = parts
    return train, labels, val, val_labels


def vit(args: argparse.Namespace) -> nn.Module:
    """Return the ViT to start from: timm's pretrained one, or a small one of random weights."""
    if args.pretrained:
        return timm.create_model("vit_tiny_patch16_224", pretrained=True, img_size=args.side, num_classes=10)
    sizes = {"patch_size": 4, "embed_dim": 64, "depth": args.depth, "num_heads": 4}
    return timm.create_model("vit_tiny_patch16_224", img_size=args.side, num_classes=10, **sizes)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, lr: float) -> None:
    """Train a model in place. The same order of images for every model."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    updates = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=updates)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), device=images.device).split(64):
            if len(chosen) == 64:
                loss = F.cross_entropy(model(images[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose most probable class is right."""
    model.eval()
    return (model(images).argmax(1) == labels).float().mean().item()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, convert and go on. Return the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", action="store_true", help="start from timm's weights, which are downloaded")
    parser.add_argument("--side", type=int, default=16, help="of the images, in pixels; 224 with --pretrained")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the small ViT")
    parser.add_argument("--epochs", type=int, default=10, help="epochs before the conversion, and after it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    args = parser.parse_args(argv)
    images, labels, val, val_labels = (each.to(args.device) for each in digits(args.side))
    torch.manual_seed(0)
    model = vit(args).to(args.device)
    train(model, images, labels, args.epochs, lr=1e-3)
    found = {"ViT": accuracy(model, val, val_labels)}
    kat = copy.deepcopy(model)
    print(flashkat.mlp_to_grkan(kat, example=images[:64]))
    found["KAT, just converted"] = accuracy(kat, val, val_labels)
    for name, each in (("ViT, trained on", model), ("KAT, trained on", kat)):
        train(each, images, labels, args.epochs, lr=5e-4)
        found[name] = accuracy(each, val, val_labels)
    for name, value in found.items():
        print(f"{name:20} {value:.2%} of {len(val):,} images right")
    return found


if __name__ == "__main__":
    main()
