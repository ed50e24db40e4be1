#!/usr/bin/env bash
# Labels every patch of a run's images with words, by a CLIP's similarities of patches and words (for SEA). A report of
# what the labels are worth comes first: FOLDER/report.txt and report.json.
#
#     bash scripts/label_patches.sh                                  # the playground's, minutes on two cores
#     bash scripts/label_patches.sh playground_sea --report_only     # the report alone
#     bash scripts/label_patches.sh llava-v1.5-7b_sea --batch_size 256 --num_workers 16
#
# The first word, when it is no flag, names scripts/configs/NAME.yaml (or a YAML file) of a training: what is labelled,
# by which tower, with which switches (patch_words_args) and into which folder (patch_words_path) stands there, and flags
# override it: --help. A killed run goes on where it stopped; one that is done says so.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$LLAVA_PAT_ROOT/scripts/launch.sh"

name=playground_sea
if (($#)) && [[ "$1" != -* ]]; then
    name="$1"
    shift
fi
config="$(config_file "$name" "")"
cd "$LLAVA_PAT_ROOT"
make_playground_for "$config"
python -m llava_pat.labelling --config "$config" "$@"
