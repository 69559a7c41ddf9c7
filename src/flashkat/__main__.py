"""``python -m flashkat``, as torchrun starts it: ``torchrun --nproc-per-node 8 -m flashkat train ...``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
