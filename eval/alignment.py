"""Measures patch-word alignment, entropy and more of checkpoints of any layout, and writes one report.

python eval/alignment.py checkpoints/llava-v1.5-playground-pretrain-pat checkpoints/llava-v1.5-playground-pat
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.evaluation.alignment.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
