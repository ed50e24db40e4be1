#!/usr/bin/env bash
# Stage 1 with supervised embedding alignment (SEA); labels the patches first, once (scripts/label_patches.sh).
#
#     bash scripts/pretrain_sea.sh                         # the playground, minutes on two cores
#     bash scripts/pretrain_sea.sh playground_pat_sea      # PAT and SEA together
#     bash scripts/pretrain_sea.sh llava-v1.5-7b_sea       # the real recipe on all GPUs of this machine
#
# Words and flags as for scripts/pretrain_pat.sh. On several nodes run scripts/label_patches.sh on one of them first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$LLAVA_PAT_ROOT/scripts/launch.sh"

name=playground_sea
if (($#)) && [[ "$1" != -* ]]; then
    name="$1"
    shift
fi
# what training is told about data and labels holds for the labels too
bash "$LLAVA_PAT_ROOT/scripts/label_patches.sh" "$name" --for_training "$@"
launch_config train/pretrain.py "$name" "" "$@"
