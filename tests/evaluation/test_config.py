"""The configuration of an evaluation, from Python."""

from dataclasses import replace

from flashkat.defaults import EVALUATION_BATCH_SIZE
from flashkat.evaluation.config import Config


def test_left_alone_it_takes_what_the_checkpoint_says():
    config = Config()
    assert config.model.model is None
    assert config.trained.checkpoint == ""
    assert config.data.batch_size == EVALUATION_BATCH_SIZE == 256
    assert config.data.val_split == "validation"


def test_two_configurations_share_nothing():
    first, second = Config(), Config()
    assert first == second
    changed = replace(first, evaluation=replace(first.evaluation, tta=2))
    assert (changed.evaluation.tta, second.evaluation.tta) == (2, 0)
