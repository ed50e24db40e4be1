#!/usr/bin/env bash
# Evaluates a checkpoint with lmms-eval: llava-hf folders, or LLaVA-layout ones where LLaVA's package is installed.
#
#     bash scripts/eval_lmms.sh checkpoints/llava-v1.5-playground-pat-hf           # the playground's VQA
#     bash scripts/eval_lmms.sh checkpoints/llava-v1.5-7b-pat-hf mme,pope          # lmms-eval downloads their data
#
# lmms-eval needs torchvision and much else, so it is best given an environment of its own (once, 6 GB):
#
#     LLAVA_PAT_VENV=/big/disk/lmms LLAVA_PAT_WITH=lmms bash scripts/eval_lmms.sh ...
#
# Flags: python eval/run_lmms.py --help; others go to lmms-eval. Relative paths are relative to the repository.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

cd "$LLAVA_PAT_ROOT"
if (($#)) && grep -qs '"mm_vision_tower": "[^"]*playground/models' "$1/config.json"; then
    python -m playground.generate --if_absent
fi
exec python eval/run_lmms.py "$@"
