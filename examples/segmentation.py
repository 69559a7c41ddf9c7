"""Segment digits: a KAT as a features_only backbone, and a small head for the class of each pixel."""

import argparse

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import flashkat  # registers the models

CLASSES = 11  # the background and ten digits
SIDE = 32


class Segmenter(nn.Module):
    """The features of several blocks of a KAT, joined and enlarged to the size of the image."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.kat = timm.create_model(
            "kat_tiny_patch16_224",
            features_only=True,
            out_indices=sorted({depth // 2, depth - 1}),
            img_size=SIDE,
            patch_size=4,
            embed_dim=width,
            depth=depth,
            num_heads=4,
        )
        joined = sum(self.kat.feature_info.channels())
        self.head = nn.Sequential(
            nn.Conv2d(joined, width, 1, bias=False),
            nn.BatchNorm2d(width),  # keeps the rational's inputs where its start was fitted
            flashkat.GroupRational(width, groups=8, start="gelu", dim=1),
            nn.ConvTranspose2d(width, CLASSES, 4, stride=4),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, classes, H, W)."""
        return self.head(torch.cat(self.kat(images), dim=1))


def pictures(digits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 32, 32) of two digits each, at random heights, and the class of each pixel (N, 32, 32)."""
    images = 0.3 * torch.rand(count, SIDE, SIDE)
    classes = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for number in range(count):
        for left in (0, SIDE // 2):
            chosen = int(torch.randint(len(digits), ()))
            rows = slice(top := int(torch.randint(SIDE // 2, ())), top + SIDE // 2)
            columns = slice(left, left + SIDE // 2)
            ink = digits[chosen]
            images[number, rows, columns] += ink
            classes[number, rows, columns] = (ink > 0.5) * (labels[chosen] + 1)
    return images[:, None].expand(-1, 3, -1, -1), classes


def mean_overlap(predicted: Tensor, classes: Tensor) -> float:
    """Return the mean over classes of intersection over union."""
    overlaps = []
    for index in range(CLASSES):
        one, other = predicted == index, classes == index
        if (union := (one | other).sum()) > 0:
            overlaps.append(((one & other).sum() / union).item())
    return sum(overlaps) / len(overlaps)


def main(argv: list[str] | None = None) -> float:
    """Train, and return the mean overlap on digits that training did not see."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="channels of the KAT")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the KAT")
    parser.add_argument("--steps", type=int, default=800, help="updates")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures of an update")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    data = load_digits()
    # 8 x 8 pixels with values up to 16, enlarged to 16 x 16.
    digits = F.interpolate(torch.tensor(data.images, dtype=torch.float)[:, None] / 16, scale_factor=2)[:, 0]
    labels, cut = torch.tensor(data.target), len(digits) * 4 // 5
    model = Segmenter(args.width, args.depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=args.steps)
    for step in range(1, args.steps + 1):
        images, classes = pictures(digits[:cut], labels[:cut], args.batch_size)
        loss = F.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, args.steps // 8) == 0:
            print(f"step {step:4}  loss {loss.item():.3f}")
    model.eval()
    with torch.no_grad():
        images, classes = pictures(digits[cut:], labels[cut:], 200)
        overlap = mean_overlap(model(images).argmax(1), classes)
    print(f"mean overlap on unseen digits {overlap:.2f}")
    return overlap


if __name__ == "__main__":
    main()
