"""Stage 1: train the projector, with an alignment objective or without.

    python train/pretrain.py --config scripts/configs/playground_pat.yaml
    deepspeed train/pretrain.py --deepspeed scripts/zero2.json ...      # LLaVA's own argument list works word for word
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.training.launch import run  # noqa: E402
from llava_pat.training.stages import pretrain  # noqa: E402

if __name__ == "__main__":
    run(pretrain)
