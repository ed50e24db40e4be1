#!/usr/bin/env bash
# Stage 1 with patch-aligned training; sets everything up first.
#
#     bash scripts/pretrain_pat.sh                                  # the playground, minutes on two cores
#     bash scripts/pretrain_pat.sh --alignment none                 # its baseline: plain LLaVA
#     bash scripts/pretrain_pat.sh llava-v1.5-7b                    # the real recipe on all GPUs of this machine
#     HOSTFILE=hosts bash scripts/pretrain_pat.sh llava-v1.5-13b    # and on several nodes (see scripts/launch.sh)
#
# The first word, when it is no flag, names scripts/configs/NAME.yaml (or a YAML file). Flags behind it override the YAML:
# python train/pretrain.py --help. Relative paths are relative to the repository, as in LLaVA. OUTPUT_DIR or --output_dir
# says where the run goes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$LLAVA_PAT_ROOT/scripts/launch.sh"

launch_config train/pretrain.py playground_pat "" "$@"
