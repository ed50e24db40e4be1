#!/usr/bin/env bash
# Injects faults of every kind and prints how many were survived; all kinds also write docs/reliability.md's table:
#
#     bash scripts/fault_suite.sh [records images] [--list]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$LLAVA_PAT_ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" WANDB_MODE="${WANDB_MODE:-offline}" HYPOTHESIS_PROFILE=suite
exec python -m tests.faults "$@"
