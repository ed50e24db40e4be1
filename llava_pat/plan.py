"""Does a run fit, and how long does it take? From its config alone: nothing is loaded or run, no GPU is needed.

    python -m llava_pat.plan --config scripts/configs/llava-v1.5-7b.yaml --gpus 8xA100-80G
    python -m llava_pat.plan --config scripts/configs/llava-v1.5-7b_finetune_qlora.yaml --gpus 4090-24G
    python -m llava_pat.plan --config my.yaml --gpus 2xL40S-48G --per_device_train_batch_size 4

Flags of training behind the planner's own override the YAML. Then come the presets beside that YAML that train the same
language model: which of them fit. docs/performance.md says how near the figures are, and where they come from.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers

from llava_pat.performance.gpus import GPUS, parse_gpus
from llava_pat.performance.plan_text import advice_text, plan_text, presets_text
from llava_pat.performance.planned_run import read_run
from llava_pat.performance.planning import UTILISATION, Plan, Planner, RunConfig
from llava_pat.training.flags import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the run fits, 1 when it does not, 2 with one line on stderr when it cannot be planned."""
    options, flags = _parser().parse_known_args(arguments)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        ranks, gpu = parse_gpus(options.gpus)
        planner = Planner(gpu, options.utilisation)
        plan = planner.plan(read_run(options.config, flags, ranks, options.stage, options.text_tokens))
        print(plan_text(plan), flush=True)
        print(advice_text(plan, planner), flush=True)
        if options.presets:
            print("\n" + presets_text(_presets(options.config, plan, planner), planner))
    except (ValueError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    finally:
        logging.disable(logging.NOTSET)
    return 0 if plan.fits else 1


def _presets(config: Path, plan: Plan, planner: Planner) -> list[Plan]:
    """Plans of the YAMLs in the same folder with the same language model, on the same GPUs."""
    plans = []
    for file in sorted(config.parent.glob("*.yaml")):
        run = _readable(file, plan.run.sharing.ranks)
        if run is not None and run.shape.name == plan.run.shape.name:
            plans.append(planner.plan(run))
    return plans


def _readable(file: Path, ranks: int) -> RunConfig | None:
    """None for a YAML that is no run's."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what parsing had to map is said for the run alone
            return read_run(file, (), ranks, None)
    except ConfigError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava_pat.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--config", type=Path, required=True, help="a run's YAML, as training takes it")
    parser.add_argument("--gpus", required=True, help=f"COUNTxNAME; known: {', '.join(GPUS)}")
    parser.add_argument("--stage", type=int, choices=(1, 2), help="default: 1 when the YAML's version is plain")
    parser.add_argument("--text_tokens", type=int, help="of a usual sequence, behind its image (default: 40 in stage "
        "1, 256 in stage 2); memory is planned for the longest, in stage 2 model_max_length")  # fmt: skip
    parser.add_argument("--utilisation", type=float, help="share of the GPU's rate that is reached, recomputation "
        f"counted (default: {UTILISATION[1]:.2f} in stage 1, {UTILISATION[2]:.2f} in stage 2: LLaVA's published hours)"
    )  # fmt: skip
    parser.add_argument("--presets", action=argparse.BooleanOptionalAction, default=True, help="plan them too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
