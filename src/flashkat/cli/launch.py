"""``python -m flashkat.cli.launch N FLAGS``: ``flashkat train`` in N processes of this machine, for ``dist_train.sh``.

It is torchrun for one node, without its report: the processes say themselves what was wrong, once, and the exit status
is theirs.
"""

import logging
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .parser import Parser
from .train_flags import add_training_arguments

__all__ = ["launch"]


def launch(processes: int, flags: Sequence[str]) -> int:
    """Train in several processes, which all end when one fails; returns the exit status, 128 and more for a signal.

    Of flags that cannot be read it says so itself, and exits with status 2.
    """
    parser = Parser(prog="flashkat train")
    add_training_arguments(parser)
    # Each process would take seconds to find the same mistake.
    parser.parse_args(flags)
    options = ["--standalone", "--nproc-per-node", str(processes), "-m", "flashkat", "train", *flags]
    try:
        run.run(run.parse_args(options))
    except ChildFailedError as error:
        return _status({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _status(codes: dict[int, int]) -> int:
    """The exit status for those of the processes, by rank; negative ones are signals, SIGTERM is torchrun's."""
    said = [code for code in codes.values() if code > 0]
    if said:
        # Bad input is 2; 1 is also that of a process whose neighbour has gone.
        return max(said)
    rank, code = min(codes.items(), key=lambda item: item[1] == -signal.SIGTERM)
    print(f"flashkat train: error: process {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
    return 128 - code


if __name__ == "__main__":
    # Of torchrun's own.
    logging.disable()
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
