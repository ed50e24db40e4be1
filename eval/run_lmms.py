"""Evaluates a checkpoint with lmms-eval, the second harness.

    python eval/run_lmms.py checkpoints/llava-v1.5-7b-pat-hf mme,pope
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.evaluation.lmms import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
