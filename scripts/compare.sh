#!/usr/bin/env bash
# The study: objectives x seeds through both stages of the playground, evaluated and compared; sets everything up first.
#
#     bash scripts/compare.sh --split test                  # none, pat, sea, pat+sea; seeds 0 to 4: the study itself, hours
#     bash scripts/compare.sh --objectives none pat --seeds 0 1 2 --stages 1 --no_alignment      # the README's table
#     bash scripts/compare.sh --objectives none pat --seeds 0 --scenes 100          # a quick look, on the split val
#     bash scripts/compare.sh --objectives none my_package.my_objective             # anybody's
#
# Runs that are finished are read, not run again; a stopped study goes on where it was. Results are in
# checkpoints/study/results/SPLIT/ (or --out), a JSON a run. Flags: python -m playground.study run --help; what is measured
# and how: docs/study.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

cd "$LLAVA_PAT_ROOT"
custom=
for word in "$@"; do
    if [[ "$word" == --data || "$word" == --data=* || "$word" == -h || "$word" == --help ]]; then custom=1; fi
done
[[ -n "$custom" ]] || python -m playground.generate --if_absent  # generated, not tracked: about a minute, once
exec python -m playground.study run "$@"
