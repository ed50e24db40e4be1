#!/usr/bin/env bash
# Stage 2 by QLoRA: adapters over a base model in 4 bits, for one GPU with 24 GB; sets everything up first.
#
#     bash scripts/finetune_qlora.sh                                # the playground, after scripts/pretrain_pat.sh
#     bash scripts/finetune_qlora.sh llava-v1.5-7b                  # the 7B recipe on one GPU
#     python -m llava_pat.merge FOLDER OUT                          # a full checkpoint from the adapters
#
# The first word, when it is no flag, names scripts/configs/NAME_finetune_qlora.yaml (or a YAML file). Flags behind it override the
# YAML: python train/finetune.py --help. Relative paths are relative to the repository, as in LLaVA. OUTPUT_DIR or
# --output_dir says where the run goes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$LLAVA_PAT_ROOT/scripts/launch.sh"

launch_config train/finetune.py playground _finetune_qlora "$@"
