"""Converts a checkpoint between LLaVA's layout, llava-hf's and stage 1's files.

python -m llava_pat.convert checkpoints/llava-v1.5-7b-pat checkpoints/llava-v1.5-7b-pat-hf --to hf
"""

import sys

from llava_pat.convert.command import main

if __name__ == "__main__":
    sys.exit(main())
