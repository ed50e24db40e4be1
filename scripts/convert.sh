#!/usr/bin/env bash
# A checkpoint into another layout (LLaVA, llava-hf, stage 1's projector), checked before it says done; --help says more:
#
#     bash scripts/convert.sh checkpoints/llava-v1.5-playground-pat checkpoints/llava-v1.5-playground-pat-hf
set -euo pipefail
here="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$here"
PYTHONPATH="$LLAVA_PAT_ROOT${PYTHONPATH:+:$PYTHONPATH}" exec python -m llava_pat.convert "$@"
