"""Run the command line as a module: ``torchrun --nproc-per-node 8 -m flashkat train ...``."""

from .cli.main import run

if __name__ == "__main__":
    run()
