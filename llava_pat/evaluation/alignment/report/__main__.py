"""Draws the report of a finished measuring run again: python -m llava_pat.evaluation.alignment.report OUT"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llava_pat.evaluation.alignment.report import render


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the run: metrics.json and data/")
    try:
        print(render(parser.parse_args(argv).out))
    except ValueError as error:  # DataError is one
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
