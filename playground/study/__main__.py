"""`python -m playground.study COMMAND ...`: run, sweep, evaluate, publish, report; each has --help."""

from __future__ import annotations

import importlib
import os
import sys

COMMANDS = {
    "run": "objectives x seeds through both stages and their evaluation (bash scripts/compare.sh)",
    "sweep": "the same for several settings",
    "evaluate": "one stage-2 checkpoint on one split",
    "publish": "copies finished results into docs/study/results",
    "report": "writes the generated parts of docs/study.md from docs/study/results",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        lines = "\n".join(f"  {name:10}{words}" for name, words in COMMANDS.items())
        print(f"usage: python -m playground.study COMMAND ...\n{lines}", file=sys.stderr)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    if argv[0] == "sweep":
        from playground.study.run import main as run

        return run(argv[1:], sweep=True)
    return importlib.import_module(f"playground.study.{argv[0]}").main(argv[1:]) or 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1:]))
