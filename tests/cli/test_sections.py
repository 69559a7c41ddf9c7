"""Flags become sections: none is lost, none has another default, and nothing changes them on the way."""

from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
import yaml
from configs import config_of

from flashkat import evaluation, training
from flashkat.cli.parser import Parser
from flashkat.cli.sections import evaluation_config
from flashkat.cli.train_flags import add_training_arguments
from flashkat.cli.validate_flags import add_validation_arguments

# The command line alone reads these.
UNUSED = {"config", "amp_impl", "local_rank"}
# The command itself writes results and finds the data set.
OF_THE_COMMAND = {"config", "amp_impl", "data_dir", "checkpoint", "use_ema", "split", "num_samples"}
OF_THE_COMMAND |= {"results_file", "results_format"}


def parsed(add, *argv):
    parser = Parser(prog="flashkat")
    add(parser)
    return parser.parse_args([str(argument) for argument in argv])


def names_in(config):
    return {
        each.name
        for section in fields(config)
        if is_dataclass(getattr(config, section.name))
        for each in fields(getattr(config, section.name))
    }


def test_every_flag_of_training_is_in_a_section():
    flags = vars(parsed(add_training_arguments, "data"))
    assert names_in(training.Config()) == flags.keys() - UNUSED


def test_every_flag_of_evaluation_is_in_a_section():
    flags = vars(parsed(add_validation_arguments, "data"))
    assert flags.keys() - OF_THE_COMMAND <= names_in(evaluation.Config())


def test_sections_have_the_defaults_of_the_flags():
    """A notebook that gives nothing trains and evaluates as the command does."""
    flags = config_of("data").flags()
    own = {name: value for name, value in flags.items() if name not in UNUSED}
    assert training.Config(data=training.Data(data_dir="data")).flags() == own
    args = parsed(add_validation_arguments, "data")
    assert evaluation_config(args, "", None) == evaluation.Config()


def test_flags_are_those_of_the_command_line():
    given = ["--scale", 0.5, 1, "--opt-kwargs", "amsgrad=True", "--mean", 0.5, "--wandb-tags", "a", "b", "--log-wandb"]
    config = config_of("data", *given)
    assert config.flags() == vars(parsed(add_training_arguments, "data", *given))
    # As args.yaml holds them.
    assert yaml.safe_load(yaml.safe_dump(config.flags())) == config.flags()


def test_sections_do_not_change():
    config = config_of("data")
    with pytest.raises(FrozenInstanceError):
        config.data.batch_size = 1
    with pytest.raises(FrozenInstanceError):
        config.data = None
