r"""Answers question JSONL about images at length (MM-Vet, LLaVA-Bench), with LLaVA's flags.

    python eval/model_vqa.py --model-path checkpoints/llava-v1.5-7b-pat \
        --question-file llava-mm-vet.jsonl --image-folder images --answers-file answers.jsonl

Several GPUs: torchrun --nproc_per_node 8 eval/model_vqa.py ..., or --num-chunks and --chunk-idx as in LLaVA.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.evaluation.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main("vqa", __doc__))
