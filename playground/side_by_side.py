"""Stage 1 with objectives side by side on the playground: the same data and seeds, mean and spread in one table.

    python -m playground.side_by_side                       # none and pat, seeds 0 1 2: the README's table
    python -m playground.side_by_side --seeds 0 1 2 3 4 --objectives none pat my_package.my_objective

Runs that are finished are read, not run again; a killed one goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = {
    "caption_loss": "caption loss, held out (nats per token)",
    "patch_cosine": "patch cosine with its label",
    "hit_colour": "right colour nearest",
    "hit_kind": "right kind nearest",
    "hit_at_1": "hit@1 among the vocabulary",
    "hit_at_5": "hit@5",
    "entropy_features": "entropy before the projector (nats)",
    "entropy_patches": "entropy after the projector (nats)",
    "entropy_features_centred": "entropy before, centred",
    "entropy_patches_centred": "entropy after, centred",
}


def run(objective: str, seed: int, config: str, out: Path, flags: list[str]) -> dict:
    """Metrics of one run, trained if it is not there."""
    folder = out / f"llava-v1.5-playground-pretrain-{objective.replace('.', '-').replace(':', '-')}-seed{seed}"
    command = [sys.executable, str(ROOT / "train/pretrain.py"), "--config", config, "--alignment", objective]
    command += ["--seed", str(seed), "--output_dir", str(folder), *flags]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((folder / "metrics.json").read_text())


def table(metrics: dict[str, list[dict]]) -> str:
    """Markdown: a row a measure, a column an objective; mean and standard deviation over seeds."""
    first = next(iter(metrics.values()))
    lines = ["| | at initialisation | " + " | ".join(f"`{name}`" for name in metrics) + " |"]
    lines.append("|---" * (len(metrics) + 2) + "|")
    for key, words in ROWS.items():
        if f"{key}_final" not in first[0]:
            continue
        cells = [_cell([run[f"{key}_init"] for run in first])]
        cells += [_cell([run[f"{key}_final"] for run in runs]) for runs in metrics.values()]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    seconds = [_cell([run["seconds"] for run in runs], 0) for runs in metrics.values()]
    lines.append("| training, seconds | | " + " | ".join(seconds) + " |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int = 3) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=["none", "pat"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--config", default="scripts/configs/playground_pat.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints/side_by_side", help="folder of the runs")
    arguments, flags = parser.parse_known_args(argv)  # further flags go to train/pretrain.py
    metrics = {
        objective: [run(objective, seed, arguments.config, arguments.out, flags) for seed in arguments.seeds]
        for objective in arguments.objectives
    }
    text = table(metrics)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
