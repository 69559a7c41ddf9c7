"""The parsers of the commands, by name."""

from flashkat.cli.parser import Parser
from flashkat.cli.tool_flags import (
    add_export_arguments,
    add_finetune_arguments,
    add_fit_arguments,
    add_flops_arguments,
    add_inspect_arguments,
    add_plot_arguments,
    add_predict_arguments,
)
from flashkat.cli.train_flags import add_training_arguments
from flashkat.cli.validate_flags import add_validation_arguments

FLAGS = {
    "train": add_training_arguments,
    "validate": add_validation_arguments,
    "plot": add_plot_arguments,
    "fit": add_fit_arguments,
    "inspect": add_inspect_arguments,
    "predict": add_predict_arguments,
    "export": add_export_arguments,
    "flops": add_flops_arguments,
    "finetune": add_finetune_arguments,
}


def parser_of(command):
    parser = Parser(prog=f"flashkat {command}")
    FLAGS[command](parser)
    return parser


def parse(command, *argv):
    return parser_of(command).parse_args([str(argument) for argument in argv])


def flags_of(command):
    return {option for action in parser_of(command)._actions for option in action.option_strings}


def long_flags(command):
    """All but ``--help``, each by one name, in the order of the help."""
    return [
        option
        for action in parser_of(command)._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help" and "_" not in option
    ]
