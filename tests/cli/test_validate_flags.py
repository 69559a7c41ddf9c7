"""The flags of ``flashkat validate``, and of other looks at a trained model."""

import pytest
from parsing import parse

# As timm's scripts have them; those that differ are named in the help.
DEFAULTS = {
    **{"split": "validation", "batch_size": 256, "num_gpu": 1, "results_format": "csv", "results_file": ""},
    **{"use_train_size": False, "crop_mode": None, "crop_border_pixels": None, "real_labels": "", "log_freq": 10},
    **{"valid_labels": "", "retry": False, "num_samples": None, "dataset": "", "class_map": ""},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_timms(name):
    assert getattr(parse("validate", "data"), name) == DEFAULTS[name]


@pytest.mark.parametrize("command", ["validate", "plot"])
def test_the_checkpoint_says_what_is_left_open(command):
    args = parse(command, "data")
    assert args.model is None
    assert args.num_classes is None
    assert args.model_kwargs == {}
    assert args.batch_size == 256
    assert not args.use_ema
