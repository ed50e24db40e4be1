"""Stage 2: visual instruction tuning of projector and language model, whole or by LoRA/QLoRA.

    python train/finetune.py --config scripts/configs/playground_finetune.yaml
    deepspeed train/finetune.py --deepspeed scripts/zero3.json ...      # LLaVA's own argument lists work word for word
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.training.launch import run  # noqa: E402
from llava_pat.training.stages import finetune  # noqa: E402

if __name__ == "__main__":
    run(finetune)
