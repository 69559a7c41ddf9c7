"""Turn the flags of a command into the sections of its configuration. Only ``cli`` uses ``Namespace``."""

from argparse import Namespace
from dataclasses import fields
from typing import Any, TypeVar

from .. import evaluation, training
from ..evaluation import Evaluation, Trained

__all__ = ["evaluation_config", "training_config"]

Section = TypeVar("Section")

# Flags that only the command line reads. args.yaml lists them, as timm's does.
_UNUSED = ("config", "amp_impl", "local_rank")


def training_config(args: Namespace) -> training.Config:
    """Return the configuration that the flags of ``flashkat train`` give."""
    sections: dict[str, Any] = {
        section.name: _section(section.default_factory, args)  # type: ignore[arg-type]
        for section in fields(training.Config)
        if section.name != "unused"
    }
    return training.Config(**sections, unused={name: getattr(args, name) for name in _UNUSED})


def evaluation_config(args: Namespace, checkpoint: str, data_dir: str | None) -> evaluation.Config:
    """Return the configuration that the flags of ``flashkat validate``, or of a tool for trained models, give.

    Args:
        args: the flags.
        checkpoint: file of the model's weights.
        data_dir: folder of the data set.
    """
    split = {"val_split": args.split, "val_num_samples": getattr(args, "num_samples", None)}
    return evaluation.Config(
        data=_section(evaluation.Data, args, data_dir=data_dir, **split),
        model=_section(evaluation.Model, args),
        trained=Trained(checkpoint=checkpoint, use_ema=args.use_ema),
        evaluation=_section(Evaluation, args),
        runtime=_section(evaluation.Runtime, args),
        compilation=_section(evaluation.Compilation, args),
    )


def _section(kind: type[Section], args: Namespace, **given: Any) -> Section:
    """Make a section from the flags with its fields' names. ``given`` takes precedence."""
    flags = vars(args)
    found = {each.name: _frozen(flags[each.name]) for each in fields(kind) if each.name in flags}  # type: ignore[arg-type]
    return kind(**{**found, **given})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
