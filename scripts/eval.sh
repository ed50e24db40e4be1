#!/usr/bin/env bash
# Answers and scores benchmarks with a checkpoint of any layout; sets everything up first.
#
#     bash scripts/eval.sh checkpoints/llava-v1.5-playground-pat                  # all of the playground's benchmarks
#     bash scripts/eval.sh checkpoints/llava-v1.5-7b-pat pope textvqa refcoco     # on all GPUs of this machine
#     bash scripts/eval.sh checkpoints/llava-v1.5-7b-pat --skip_missing           # all whose files are there
#     bash scripts/eval.sh - --list                                               # which there are, what they need
#
# Flags: python eval/run_benchmarks.py --help. Relative paths are relative to the repository. Files of benchmarks lie
# where LLaVA has them, under playground/data/eval (or --data_root); docs/evaluation.md says which and where from.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$LLAVA_PAT_ROOT/scripts/launch.sh"

cd "$LLAVA_PAT_ROOT"
if (($#)) && grep -qs '"mm_vision_tower": "[^"]*playground/models' "$1/config.json"; then
    python -m playground.generate --if_absent  # the small world is generated, not tracked: about a minute, once
    if (($(visible_gpus) == 0)); then  # the model is tiny: two processes of one thread take half the time of one of two
        cores=$(python -c 'import os; print(min(os.cpu_count() or 1, 4))')
        export NUM_GPUS="${NUM_GPUS:-$cores}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    fi
fi
launch eval/run_benchmarks.py "$@"
