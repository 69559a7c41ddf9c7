import numpy as np
import pytest
import torch
from timm.data import Mixup

from flashkat.training.mixing import Mixer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cutmix_alpha": 1.0, "label_smoothing": 0.1},
        {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)},
        {"prob": 0.5},
        {"mode": "pair"},
        {"mode": "elem"},
    ],
    ids=str,
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_mixes_as_timm(options, layout, device):
    images = torch.randn(6, 3, 8, 10, device=device).contiguous(memory_format=layout)
    classes = torch.tensor([3, 1, 4, 1, 1, 0], device=device)
    buffer, mixer = torch.empty_like(images), Mixer(num_classes=10, **options)
    mixer.buffer = lambda like: buffer
    for seed in range(8):
        np.random.seed(seed)
        theirs, their_target = Mixup(num_classes=10, **options)(images.clone(), classes)
        np.random.seed(seed)
        given = images.clone()
        ours, target = mixer(given, classes)
        torch.testing.assert_close(ours, theirs)
        assert torch.equal(target, their_target)
        assert torch.equal(given, images)
        assert ours is given or ours is buffer or mixer.mode != "batch"
