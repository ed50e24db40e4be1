"""The fault suite: injects faults of every kind, and says how many were survived.

    bash scripts/fault_suite.sh                    # all kinds; writes the table of docs/reliability.md
    bash scripts/fault_suite.sh records images     # kinds whose names hold these words; writes nothing
    bash scripts/fault_suite.sh --list

Status 1 when a fault was not survived.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.registry import all_kinds
from tests.faults.runner import run_kind
from tests.faults.table import table, write_between_markers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bash scripts/fault_suite.sh", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only kinds whose names hold one of these")
    parser.add_argument("--seed", type=int, default=0, help="another one injects other faults (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of the faults, such as 0.1 (default: all)")
    parser.add_argument("--list", action="store_true", help="the kinds, and what survival means")
    options = parser.parse_args(argv)
    kinds = [k for k in all_kinds().values() if not options.words or any(word in k.name for word in options.words)]
    if not kinds:
        parser.error(f"no kind's name holds {' or '.join(options.words)}; there are: {', '.join(all_kinds())}")
    if options.list:
        print("\n".join(f"{kind.name}: {kind.survived_means}" for kind in kinds))
        return 0
    results = []
    for kind in kinds:
        print(f"{kind.name} ...", file=sys.stderr, flush=True)
        results.append(run_kind(kind, options.seed, options.share))
        for lost in results[-1].lost:
            print(f"  NOT SURVIVED: {lost.fault}: {lost.happened}", file=sys.stderr, flush=True)
    print(table(results))
    if not options.words and options.share == 1 and options.seed == 0:
        write_between_markers(PAGE, table(results))
        print(f"written to {PAGE}")
    return 0 if all(result.survived == result.injected for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
