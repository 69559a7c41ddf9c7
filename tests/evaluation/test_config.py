"""The configuration of an evaluation, from Python."""

import math
import re
from dataclasses import replace

import pytest

from flashkat import training
from flashkat.defaults import EVALUATION_BATCH_SIZE
from flashkat.errors import InputError
from flashkat.evaluation import Data, Model
from flashkat.evaluation.config import Config, Evaluation, check_values


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


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"evaluation": Evaluation(tta=11)}, "--tta must be at least 0 and at most 10, not 11"),
        ({"evaluation": Evaluation(crop_mode="x")}, "--crop-mode must be one of 'center', 'squash', 'border', not 'x'"),
        ({"data": Data(batch_size=1.5)}, "--batch-size must be a whole number, not 1.5"),
        ({"data": Data(batch_size="4")}, "--batch-size must be a whole number, not '4'"),
        ({"data": Data(crop_pct=0)}, "--crop-pct must be more than 0 and at most 1, not 0"),
        ({"data": Data(val_fraction=1)}, "--val-fraction must be at least 0 and less than 1, not 1"),
        ({"data": Data(std=(0.5, 0.0))}, "--std must be more than 0, not 0.0"),
        ({"data": Data(mean=(math.nan,))}, "--mean must be a number, not nan"),
        ({"data": Data(mean=0.5)}, "--mean takes several numbers, not 0.5"),
        ({"data": Data(mean=())}, "--mean takes several numbers, not ()"),
        ({"data": Data(input_size=(3, 16))}, "--input-size takes 3 numbers, not (3, 16)"),
        ({"data": Data(workers=None)}, "--workers must not be None"),
        ({"model": Model(model_kwargs={"in_chans": 1})}, "--model-kwargs in_chans: use --in-chans"),
    ],
)
def test_values_that_their_flags_refuse(section, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check_values(Config(**section))


def test_every_default_is_allowed():
    check_values(Config())
    check_values(training.Config())
