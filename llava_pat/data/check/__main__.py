"""Checks records, regions and images before training; the flags are training's own.

python -m llava_pat.data.check --data_path train.json --image_folder images --regions_path regions.jsonl
"""

import sys

from llava_pat.training.check_command import main

if __name__ == "__main__":
    sys.exit(main())
