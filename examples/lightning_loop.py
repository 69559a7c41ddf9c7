"""Train a KAT on digits with Lightning: its Trainer runs the loop, and this file says what a step is."""

import argparse

import lightning
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, random_split

from flashkat.nn import coefficient_names


class Classifier(lightning.LightningModule):
    """A KAT, its loss and its optimiser."""

    def __init__(self, width: int, depth: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.model = timm.create_model(
            "kat_tiny_patch16_224",
            img_size=8,
            patch_size=2,
            in_chans=1,
            num_classes=10,
            embed_dim=width,
            depth=depth,
            num_heads=4,
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels, label_smoothing=0.1)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the share of right answers in a batch."""
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:
        """Return AdamW without weight decay on the coefficients of the rationals, and its schedule."""
        parameters = dict(self.model.named_parameters())
        coefficients = [parameters.pop(name) for name in coefficient_names(self.model)]
        groups = [{"params": list(parameters.values())}, {"params": coefficients, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def digits(batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Return loaders of scikit-learn's digits, for training and for evaluation."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float)[:, None] / 8 - 1
    every = TensorDataset(images, torch.tensor(data.target))
    train, val = random_split(every, [0.8, 0.2], torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(val, 500)


def main(argv: list[str] | None = None) -> float:
    """Train, and return the accuracy on the images for evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="channels of the KAT")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the KAT")
    parser.add_argument("--epochs", type=int, default=10, help="epochs")
    parser.add_argument("--batch-size", type=int, default=64, help="images of an update")
    args = parser.parse_args(argv)
    lightning.seed_everything(0, verbose=False)
    train, val = digits(args.batch_size)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(args.width, args.depth, lr=3e-3), train, val)
    accuracy = trainer.callback_metrics["accuracy"].item()
    print(f"{accuracy:.2%} of the digits for evaluation right after {args.epochs} epochs")
    return accuracy


if __name__ == "__main__":
    main()
