#!/usr/bin/env bash
# All tests, on a machine without a GPU; arguments go to pytest:
#
#     bash scripts/test.sh [tests/data] [-k regions]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$LLAVA_PAT_ROOT"
# One thread each: tests that start two processes with two threads on two cores take 4 to 7 times as long.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" WANDB_MODE="${WANDB_MODE:-offline}"
exec python -m pytest -q -p no:cacheprovider "$@"
