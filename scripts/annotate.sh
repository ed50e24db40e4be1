#!/usr/bin/env bash
# Annotates images that have captions and no regions: labels and masks for stage 1, by tagger, detector and segmenter.
#
#     bash scripts/annotate.sh IMAGES_JSON IMAGE_FOLDER OUT                          # Grounding DINO and SAM 2
#     bash scripts/annotate.sh IMAGES_JSON IMAGE_FOLDER OUT --set device=cuda dtype=bfloat16
#     bash scripts/annotate.sh IMAGES_JSON IMAGE_FOLDER OUT --config my.yaml --engine ray      # all GPUs, all nodes
#
# A killed run goes on by the same command. Stage 1 takes the result as --regions_path OUT/regions; what is in it is
# shown by python -m llava_pat.annotation.report OUT. Flags: --help; settings: docs/annotation.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

exec python -m llava_pat.annotation.annotate "$@"
