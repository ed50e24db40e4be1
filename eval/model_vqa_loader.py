r"""Answers question JSONL about images in short (VQAv2, GQA, VizWiz, TextVQA, POPE, MME, SEED), with LLaVA's flags.

    python eval/model_vqa_loader.py --model-path checkpoints/llava-v1.5-7b-pat \
        --question-file llava_pope_test.jsonl --image-folder val2014 --answers-file answers.jsonl

Several GPUs: torchrun --nproc_per_node 8 eval/model_vqa_loader.py ..., or --num-chunks and --chunk-idx as in LLaVA.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.evaluation.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main("loader", __doc__))
