#!/usr/bin/env bash
# Train with N processes, one for each GPU: bash dist_train.sh N DATA_PATH [flags of train.py]
set -euo pipefail
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash dist_train.sh PROCESSES DATA_PATH [flags of flashkat train]" >&2
    exit 2
fi
processes=$1
shift
export PYTHONPATH="$(cd "$(dirname "$0")" && pwd)/src${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m flashkat.cli.launch "$processes" "$@"
