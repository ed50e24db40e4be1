#!/usr/bin/env bash
# What only a GPU can say about speed, in one call of under 8 minutes on a GPU with 80 GB; JSON in OUT:
#
#     bash scripts/bench_gpu.sh [OUT]                        # LLaVA-1.5's 7B shape, made-up weights: nothing is downloaded
#     BENCH_SHAPE=playground bash scripts/bench_gpu.sh OUT   # the same calls where there is no such GPU
#
# profile-stage1.json   the phases of stage 1, utilisation, planned against measured memory (python -m llava_pat.profile)
# stage1.json           stage 1 beside LLaVA's recipe on transformers: a step of 16, ours in micro-batches of 4 without
#                       gradient checkpointing (no more memory than the recipe takes) and, for speed alone, of 16
# lora.json             stage 2 by LoRA beside it
# With TRL installed, BENCH_PEERS="hf trl" takes it along; liger-kernel where it is installed. docs/performance.md says how to read them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

out="$(mkdir -p "${1:-bench_gpu}" && cd "${1:-bench_gpu}" && pwd)"
cd "$LLAVA_PAT_ROOT"
shape="${BENCH_SHAPE:-llava-v1.5-7b}"
read -ra peers <<<"${BENCH_PEERS:-hf}"
fused=()
if python -c "import liger_kernel" 2>/dev/null && [ "$(python -c "import torch; print(torch.cuda.is_available())")" = True ]; then
    fused=(ours:padding_free:liger@4)
fi
side_by_side=(python tests/bench/bench_step.py --shape "$shape" --batch_size 16 --rounds 5 --most_seconds 75)

python -m llava_pat.profile --shape "$shape" --batch_size 4 --padding_free --steps 5 --json "$out/profile-stage1.json"
"${side_by_side[@]}" --stage 1 --json "$out/stage1.json" \
    --contestants ours:padding_free@4 ours:padding_free ours:padding_free:pat@4 "${fused[@]}" "${peers[@]}"
"${side_by_side[@]}" --stage 2 --lora --json "$out/lora.json" \
    --contestants ours:padding_free@4 ours:padding_free:checkpointing "${peers[@]}"
echo "[bench] JSON in $out" >&2
