"""Train a KAT on digits with Hugging Face Accelerate, which places and wraps what the loop uses.

On several GPUs: accelerate launch examples/accelerate_loop.py
"""

import argparse

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader, TensorDataset, random_split

import flashkat  # noqa: F401 - registers the models


def digits(batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Return loaders of scikit-learn's digits, for training and for evaluation."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float)[:, None] / 8 - 1
    every = TensorDataset(images, torch.tensor(data.target))
    train, val = random_split(every, [0.8, 0.2], torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(val, 500)


def main(argv: list[str] | None = None) -> float:
    """Train, and return the accuracy on the images for evaluation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="channels of the KAT")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the KAT")
    parser.add_argument("--epochs", type=int, default=10, help="epochs")
    parser.add_argument("--batch-size", type=int, default=64, help="images per update and process")
    parser.add_argument("--mixed-precision", choices=["no", "bf16"], default="no", help="autocast (default: no)")
    args = parser.parse_args(argv)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(0)
    sizes = {"embed_dim": args.width, "depth": args.depth, "num_heads": 4}
    model = timm.create_model("kat_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, **sizes)
    optimizer = create_optimizer_v2(model, "adamw", lr=3e-3, weight_decay=0.05)
    model, optimizer, train, val = accelerator.prepare(model, optimizer, *digits(args.batch_size))
    total = args.epochs * len(train) * accelerator.num_processes  # each process steps the schedule for all
    schedule = accelerator.prepare(torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=total))

    accuracy = 0.0
    for epoch in range(1, args.epochs + 1):
        model.train()
        for images, labels in train:
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            found = [accelerator.gather_for_metrics((model(images).argmax(1), labels)) for images, labels in val]
        right = torch.cat([answers == labels for answers, labels in found])
        accuracy = right.float().mean().item()
        accelerator.print(f"epoch {epoch:2}  loss {loss.item():.3f}  {accuracy:.2%} of {len(right)} digits right")
    accelerator.end_training()
    return accuracy


if __name__ == "__main__":
    main()
