"""``flashkat export``: a KAT's weights as other programs load them."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from .. import checkpoints, names
from ..errors import InputError

__all__ = ["export"]


def export(args: Namespace, say: Callable[[str], None] = lambda line: None) -> int:
    """Write the weights of ``args.checkpoint`` to ``args.output`` in ``args.format``; returns how many tensors.

    Notes go through ``say``. Every tensor is what it was, bit for bit; only names change. The file holds the state_dict
    alone.

    Raises:
        InputError: a checkpoint that is no KAT's or does not fit the format, or an output that cannot be written.
    """
    output = Path(args.output)
    checkpoints.check_output(output)
    checkpoint = checkpoints.read(args.checkpoint)
    state = checkpoints.weights(checkpoint, args.use_ema)
    if output.exists() and output.samefile(args.checkpoint):
        raise InputError(f"{output} is the checkpoint itself: give another name")
    exported = names.export(state, args.format, args.checkpoint)
    checkpoints.write_weights(output, exported)
    for note in checkpoints.notes_on_average(checkpoint, args.use_ema):
        say(note)
    return len(exported)
