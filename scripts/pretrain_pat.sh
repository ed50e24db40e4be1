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

config=playground_pat
if (($#)) && [[ "$1" != -* ]]; then
    config="$1"
    shift
fi
if [[ -f "$config" ]]; then
    config="$(cd "$(dirname "$config")" && pwd)/$(basename "$config")"
else
    config="scripts/configs/${config%.yaml}.yaml"
fi
cd "$LLAVA_PAT_ROOT"
if [[ ! -f "$config" ]]; then
    echo "$config: no such file; there are: $(cd scripts/configs && echo *.yaml)" >&2
    exit 1
fi
if [[ "$(basename "$config")" == playground* ]]; then
    python -m playground.generate --if_absent  # the small world is generated, not tracked: about a minute, once
fi
launch train/pretrain.py --config "$config" "$@"
