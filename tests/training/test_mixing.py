import numpy as np
import pytest
import torch
from timm.data import Mixup

from flashkat.training.mixing import Mixer


@pytest.mark.parametrize(
    "options",
    [{"cutmix_alpha": 1.0}, {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)}, {"prob": 0.5}, {"mode": "pair"}],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_mixes_as_timm(options, layout):
    images, classes = torch.randn(6, 3, 8, 8).contiguous(memory_format=layout), torch.arange(6)
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
        assert ours is given or (ours is buffer and torch.equal(given, images))
