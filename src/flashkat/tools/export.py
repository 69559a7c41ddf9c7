"""``flashkat export``: a KAT's weights as other programs load them."""

from argparse import Namespace
from pathlib import Path

from .. import checkpoints, names
from ..errors import InputError

__all__ = ["export"]


def export(args: Namespace) -> int:
    """Write the weights of ``args.checkpoint`` to ``args.output`` in ``args.format``; returns how many tensors.

    Every tensor is what it was, bit for bit; only names change. The file holds the state_dict alone.

    Raises:
        InputError: a checkpoint that is no KAT's or does not fit the format, or an output that cannot be written.
    """
    output = Path(args.output)
    checkpoints.check_output(output)
    state = checkpoints.weights(checkpoints.read(args.checkpoint), args.use_ema)
    if output.exists() and output.samefile(args.checkpoint):
        raise InputError(f"{output} is the checkpoint itself: give another name")
    exported = names.export(state, args.format, args.checkpoint)
    checkpoints.write_weights(output, exported)
    return len(exported)
