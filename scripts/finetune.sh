#!/usr/bin/env bash
# Stage 2: visual instruction tuning of projector and language model; sets everything up first.
#
#     bash scripts/finetune.sh                                      # the playground, after scripts/pretrain_pat.sh
#     bash scripts/finetune.sh llava-v1.5-7b                        # the real recipe on all GPUs of this machine
#     HOSTFILE=hosts bash scripts/finetune.sh llava-v1.5-13b        # and on several nodes (see scripts/launch.sh)
#     bash scripts/finetune.sh llava-v1.5-7b --deepspeed scripts/zero3_offload.json --per_device_train_batch_size 4
#                                                                   # one GPU with 24 GB and 160 GB of main memory
#
# The first word, when it is no flag, names scripts/configs/NAME_finetune.yaml (or a YAML file). Flags behind it override the
# YAML: python train/finetune.py --help. Relative paths are relative to the repository, as in LLaVA. OUTPUT_DIR or
# --output_dir says where the run goes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$LLAVA_PAT_ROOT/scripts/launch.sh"

launch_config train/finetune.py playground _finetune "$@"
