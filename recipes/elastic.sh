#!/usr/bin/env bash
# Train on several nodes with torchrun alone. After a process or a node has died, the rest wait for it and go on.
#
# Usage, on each node: FIRST_NODE=host recipes/elastic.sh [FLAGS of flashkat train]
# Start it again where a node came back. All nodes take the same variables and flags.
set -euo pipefail

# Environment. The folder of the run must be on storage that all nodes share.
data=${DATA_PATH:-/data/imagenet}
model=${MODEL:-kat_tiny_patch16_224}
output=${OUTPUT:-output/train}
experiment=${EXPERIMENT:-$model}
python=${PYTHON:-python}   # one with flashkat installed
first=${FIRST_NODE:-}       # its name, as the others reach it
port=${PORT:-29400}        # free on the first node
nodes=${NNODES:-2}
processes=${NPROC:-gpu}    # on each node
restarts=${MAX_RESTARTS:-10}
if [ -z "$first" ]; then echo "$0: set FIRST_NODE to the name of the first node" >&2; exit 2; fi

# Each start of the processes gets a store of its own. Nodes count restarts differently, and would not meet in a kept one.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Processes that have not stopped after these seconds are killed (torch 2.12 and newer, 30 s before).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}

exec "$python" -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$processes" \
    --max-restarts "$restarts" --rdzv-id "$experiment" --rdzv-backend c10d --rdzv-endpoint "$first:$port" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m flashkat train "$data" --model "$model" --output "$output" --experiment "$experiment" --resume auto "$@"
