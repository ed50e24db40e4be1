#!/usr/bin/env bash
# Measures alignment of patches and words in any number of checkpoints, of any layout, and writes one report:
#
#     bash scripts/analyze.sh checkpoints/llava-v1.5-playground-pretrain-pat        # on the playground's held-out data
#     bash scripts/analyze.sh CKPT CKPT CKPT --out checkpoints/alignment-of-three
#
# Flags: python eval/alignment.py --help. Relative paths are relative to the repository. What the numbers mean:
# docs/analysis.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

cd "$LLAVA_PAT_ROOT"
if [[ " $* " != *" --data_path"* ]]; then
    python -m playground.generate --if_absent  # the small world is generated, not tracked: about a minute, once
fi
exec python eval/alignment.py "$@"
