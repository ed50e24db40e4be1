"""Answers and scores benchmarks with a checkpoint of any layout; torchrun shares the questions among its processes.

    python eval/run_benchmarks.py checkpoints/llava-v1.5-playground-pat                # the playground's benchmarks
    torchrun --nproc_per_node 8 eval/run_benchmarks.py checkpoints/llava-v1.5-7b-pat pope textvqa refcoco
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llava_pat.evaluation.suite import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
