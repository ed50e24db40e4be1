"""From a cell to its result: stage 1, stage 2, measures, answers, scores; each only where its result is not there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

from playground.study.cells import Cell, shown
from playground.study.evaluate import SCORES
from playground.study.files import read_json, write_json
from playground.study.inputs import provenance
from playground.study.subset import write_subset
from playground.study.work import Workers

METRICS = "metrics.json"
PROJECTOR = "mm_projector.bin"
MEASURED_IN_TRAINING = "val"
STUDY = [sys.executable, "-m", "playground.study"]


class Steps:
    """What is done for each cell, on one split."""

    def __init__(
        self, split: str, scenes: int | None, stages: int, alignment: bool, workers: Workers, inputs: dict[str, Any]
    ) -> None:
        self.split, self.scenes, self.stages, self.alignment = split, scenes, stages, alignment
        self.workers, self.inputs = workers, inputs
        self.provenance = provenance()
        self._labelled: set[Path] = set()

    def finish(self, cell: Cell, say: Callable[[str], None]) -> str:
        """Do what is left of a cell and write its result. Returns a line about it; raises StepError."""
        result = cell.result(self.split)
        if result.is_file() and self._complete(read_json(result)):
            return "finished before"
        commands, seconds = {}, {}
        if cell.labels is not None:
            with self.workers.alone_in(cell.labels):
                if cell.labels not in self._labelled:
                    self._timed("labels", cell, cell.labels_command(), seconds, say)
                    self._labelled.add(cell.labels)
        for stage, folder, command in self._stages(cell):
            with self.workers.alone_in(folder):
                commands[stage] = [Path(command[0]).name, *command[1:]]
                if not trained(folder):
                    self._timed(stage, cell, command, seconds, say)
                _drop_checkpoints(folder)
        measured = self._measures(cell, seconds, say)
        scores = self._scores(cell, seconds, say) if self.stages == 2 else {}
        content = self._result(cell, commands, measured, scores)
        write_json(result, content)
        return _summary(content["metrics"])

    def _stages(self, cell: Cell) -> list[tuple[str, Path, list[str]]]:
        found = [("stage1", cell.stage1, cell.stage1_command())]
        if self.stages == 2:
            subset = None
            if cell.sft_share < 1:
                whole = cell.study.data / "instruct_train.json"
                subset = write_subset(whole, cell.sft_share, cell.study.out / "subsets")
            found.append(("stage2", cell.stage2, cell.stage2_command(subset)))
        return found

    def _scores(self, cell: Cell, seconds: dict[str, float], say: Callable[[str], None]) -> dict[str, Any]:
        folder = cell.study.out / "evaluation" / self.split / cell.name
        file = folder / SCORES
        if not file.is_file() or not self._answered(read_json(file)):
            command = [*STUDY, "evaluate", str(cell.stage2), *self._about(cell), "--out", str(folder)]
            if self.scenes is not None:
                command += ["--scenes", str(self.scenes)]
            self._timed("evaluation", cell, command, seconds, say)
        return read_json(file)

    def _measures(
        self, cell: Cell, seconds: dict[str, float], say: Callable[[str], None]
    ) -> dict[str, dict[str, float]]:
        """Alignment, entropy and caption loss of each stage's run: the alignment report's figures on the split.

        Without them, what training itself measured, which is on `val` alone.
        """
        runs = {stage: folder for stage, folder, _ in self._stages(cell)}
        if not self.alignment:
            if self.split != MEASURED_IN_TRAINING:
                return {}
            found = {stage: read_json(folder / METRICS) for stage, folder in runs.items()}
            return {stage: {name.removesuffix("_final"): value for name, value in run.items() if "_final" in name}
                    for stage, run in found.items()}  # fmt: skip
        out = cell.study.out / "alignment" / self.split / cell.name
        if not (out / METRICS).is_file():
            # the controls that are fitted do not depend on the cell: the report at the end has them
            command = [*report_command(list(runs.values()), cell.study.data, self.split, out), "--no_report"]
            self._timed("alignment", cell, [*command, "--pictures", "0", "--fit_regions_path", "none"], seconds, say)
        rows = read_json(out / METRICS)["checkpoints"].values()  # in the order of the command line
        return dict(zip(runs, rows, strict=True))

    def _about(self, cell: Cell) -> list[str]:
        return ["--data", str(cell.study.data), "--split", self.split]

    def _timed(
        self, step: str, cell: Cell, command: list[str], seconds: dict[str, float], say: Callable[[str], None]
    ) -> None:
        log = f"{cell.name}-{step.replace(' ', '-')}"
        seconds[step] = round(self.workers.run(command, log), 1)
        say(f"  {cell.name}: {step} done in {seconds[step]:.0f} s")

    def _complete(self, result: dict[str, Any]) -> bool:
        """Whether an earlier result has all that is asked for now."""
        measured = not self.alignment or "stage1_tacs" in result["metrics"]
        return measured and (self.stages == 1 or self._answered(result))

    def _answered(self, scores: dict[str, Any]) -> bool:
        """Whether scores are about all scenes, or as many as asked for."""
        return "turns" in scores["questions"] and (scores["whole"] or scores["scenes"] == self.scenes)

    def _result(
        self, cell: Cell, commands: dict[str, list[str]], measured: dict[str, dict], scores: dict[str, Any]
    ) -> dict[str, Any]:
        metrics = {f"{stage}_{name}": value for stage, found in measured.items() for name, value in found.items()}
        runs = {stage: read_json(folder / METRICS) for stage, folder, _ in self._stages(cell)}
        for stage, run in runs.items():
            metrics |= {f"{stage}_{name}": run[name] for name in ("seconds", "steps", "peak_memory_bytes")}
        initial = {name: value for name, value in runs["stage1"].items() if name.endswith("_init")}
        return {
            "objective": cell.objective,
            "seed": cell.seed,
            "split": self.split,
            "setting": cell.overrides,
            "scenes": scores.get("scenes"),
            "whole": self.scenes is None,
            "questions": scores.get("questions", {}),
            "metrics": metrics | scores.get("metrics", {}),
            "initial": initial,
            "tallies": scores.get("tallies", {}),
            "commands": {stage: " ".join(words) for stage, words in commands.items()},
            "configs": {stage: shown(folder / "config.yaml") for stage, folder, _ in self._stages(cell)},
            "finished": time.strftime("%Y-%m-%d %H:%M"),
            **self.provenance,
            "inputs": self.inputs,
        }


def report_command(checkpoints: Sequence[Path], data: Path, split: str, out: Path) -> list[str]:
    """`bash scripts/analyze.sh` about these checkpoints and this split."""
    return [
        *(sys.executable, "eval/alignment.py", *map(str, checkpoints), "--out", str(out)),
        *("--data_path", str(data / f"pretrain_{split}.json"), "--image_folder", str(data / "images")),
        *("--regions_path", str(data / f"regions_{split}.jsonl"), "--vocabulary_path", str(data / "vocabulary.json")),
        *("--fit_data_path", str(data / "pretrain_train.json"), "--fit_image_folder", str(data / "images")),
        *("--fit_regions_path", str(data / "regions_train.jsonl")),
    ]


def trained(folder: Path) -> bool:
    """Whether a stage's run is whole: its metrics are written last."""
    return (folder / METRICS).is_file() and (folder / PROJECTOR).is_file()


def _drop_checkpoints(folder: Path) -> None:
    """A finished run needs its optimizer no more (three times the model's size, a cell)."""
    for checkpoint in folder.glob("checkpoint-*"):
        rmtree(checkpoint)


def _summary(metrics: dict[str, float]) -> str:
    shown_first = ("stage1_caption_loss", "stage1_patch_cosine", "cider", "object_f1", "rec", "qa", "instruct")
    return ", ".join(f"{name} {metrics[name]:.3g}" for name in shown_first if name in metrics)
