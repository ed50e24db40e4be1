"""Reports on a run of annotation or on a regions file: python -m llava_pat.annotation.report OUT"""

import sys

from llava_pat.annotation.report.command import main

if __name__ == "__main__":
    sys.exit(main())
