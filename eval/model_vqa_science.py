r"""Answers ScienceQA, with images and without, with LLaVA's flags.

    python eval/model_vqa_science.py --model-path checkpoints/llava-v1.5-7b-pat \
        --question-file llava_test_CQM-A.json --image-folder test --single-pred-prompt --answers-file answers.jsonl

Several GPUs: torchrun --nproc_per_node 8 eval/model_vqa_science.py ..., or --num-chunks and --chunk-idx as in LLaVA.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.evaluation.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main("science", __doc__))
