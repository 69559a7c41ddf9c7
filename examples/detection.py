"""Train torchvision's Mask R-CNN with a KAT as its backbone, on pictures of circles and squares."""

import argparse
from collections import OrderedDict

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, box_iou

import flashkat  # registers the models

SHAPES = ("circle", "square")
STRIDES = (4, 8, 16, 32)


class KATWithPyramid(nn.Module):
    """A KAT's last features, at four scales, in torchvision's feature pyramid.

    All blocks of a ViT have one scale. As in ViTDet (Li et al., 2022), transposed convolutions and pooling make others.
    """

    def __init__(self, kat: nn.Module, out_channels: int) -> None:
        super().__init__()
        width = kat.feature_info.channels()[-1]
        up = [nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(3)]
        self.kat, self.out_channels = kat, out_channels
        act = flashkat.GroupRational(width, groups=8, start="gelu", dim=1)
        self.scales = nn.ModuleList([nn.Sequential(up[0], act, up[1]), up[2], nn.Identity(), nn.MaxPool2d(2)])
        self.pyramid = FeaturePyramidNetwork([width] * len(STRIDES), out_channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Map images (N, 3, H, W) to features by the name of their scale."""
        features = self.kat(images)[-1]
        return self.pyramid(OrderedDict((str(index), scale(features)) for index, scale in enumerate(self.scales)))


def build(side: int, width: int, depth: int) -> MaskRCNN:
    """Return a Mask R-CNN for square images of this side, a multiple of 32."""
    kat = timm.create_model(
        "kat_tiny_patch16_224",  # with pretrained=True and without the sizes below: the published weights
        features_only=True,
        out_indices=[depth - 1],
        img_size=side,
        dynamic_img_size=True,  # images of other sizes, which the transform of the detector makes
        embed_dim=width,
        depth=depth,
        num_heads=4,
    )
    anchors = AnchorGenerator(tuple((4 * stride,) for stride in STRIDES), ((0.5, 1.0, 2.0),) * len(STRIDES))
    return MaskRCNN(
        KATWithPyramid(kat, 64),
        num_classes=1 + len(SHAPES),
        rpn_anchor_generator=anchors,
        min_size=side,
        max_size=side,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        box_batch_size_per_image=64,
    )


def picture(side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an image (3, side, side) of a circle or a square on noise, and its box, label and mask."""
    radius = int(torch.randint(side // 8, side // 4, ()))
    x, y = (int(torch.randint(radius, side - radius, ())) for _ in range(2))
    label = int(torch.randint(len(SHAPES), ()))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    inside = torch.stack([(columns - x).abs(), (rows - y).abs()])
    mask = inside.square().sum(0) <= radius**2 if label == 0 else inside.amax(0) <= radius
    image = torch.where(mask, torch.rand(3, 1, 1), 0.2 * torch.rand(3, side, side))
    box = torch.tensor([[x - radius, y - radius, x + radius, y + radius]], dtype=torch.float)
    return image, {"boxes": box, "labels": torch.tensor([label + 1]), "masks": mask[None].to(torch.uint8)}


@torch.no_grad()
def evaluate(model: MaskRCNN, side: int, count: int) -> tuple[float, float]:
    """Return the mean overlap of the most probable box with the true one, and the share of right labels."""
    model.eval()
    overlaps, right = [], 0
    for image, truth in (picture(side) for _ in range(count)):
        (found,) = model([image])
        if len(found["boxes"]):
            overlaps.append(box_iou(found["boxes"][:1], truth["boxes"]).item())
            right += int(found["labels"][0] == truth["labels"][0])
    return sum(overlaps) / count, right / count


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Train, and return the mean overlap of boxes and the share of right labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64, help="of the pictures in pixels, a multiple of 32")
    parser.add_argument("--width", type=int, default=64, help="channels of the KAT")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the KAT")
    parser.add_argument("--steps", type=int, default=150, help="updates")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures of an update")
    parser.add_argument("--new-pictures", type=int, default=20, help="to evaluate on")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = build(args.side, args.width, args.depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=args.steps)
    for step in range(1, args.steps + 1):
        images, targets = zip(*(picture(args.side) for _ in range(args.batch_size)), strict=True)
        losses = model(list(images), list(targets))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, args.steps // 5) == 0:
            parts = "  ".join(f"{name.removeprefix('loss_')} {value.item():.3f}" for name, value in losses.items())
            print(f"step {step:4}  {parts}")
    overlap, right = evaluate(model, args.side, args.new_pictures)
    print(f"{args.new_pictures} new pictures: box overlap {overlap:.2f}, {right:.0%} right labels")
    return overlap, right


if __name__ == "__main__":
    main()
