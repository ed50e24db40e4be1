r"""Answers MMBench (EN, CN), images and options in a TSV, with LLaVA's flags.

    python eval/model_vqa_mmbench.py --model-path checkpoints/llava-v1.5-7b-pat \
        --question-file mmbench_dev_20230712.tsv --single-pred-prompt --answers-file answers.jsonl

Several GPUs: torchrun --nproc_per_node 8 eval/model_vqa_mmbench.py ..., or --num-chunks and --chunk-idx as in LLaVA.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.evaluation.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main("mmbench", __doc__))
