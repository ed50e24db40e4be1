"""Labels every patch of a data set with words, for SEA; a report of the labels comes first.

python -m llava_pat.labelling --config scripts/configs/playground_sea.yaml
"""

import sys

from llava_pat.labelling.command import main

if __name__ == "__main__":
    sys.exit(main())
