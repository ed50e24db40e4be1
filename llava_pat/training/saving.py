"""transformers' checkpoints, but whole or not there (checkpoints.py), and with what the next log line needs."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_pat.training.checkpoints import TRAINER_STATE, aside, discard, last_checkpoint, publish, rotate
from llava_pat.training.failures import writing
from llava_pat.training.phases import phase
from llava_pat.training.ranks import wait_for_all

_MORE_SPACE = "free some space (--save_total_limit says how many checkpoints are kept), and give the same command again"


class SavingTrainer(Trainer):
    """A Trainer whose every rank writes its part of a checkpoint aside; the first then moves it into place whole."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._saving_in: Path | None = None  # where checkpoints go while one is written
        self._resumed = False

    @abstractmethod
    def log_window(self) -> dict[str, Tensor]:
        """What the steps since the last log line add to the next one, of this rank."""

    @abstractmethod
    def restore_log_window(self, sums: dict[str, Tensor]) -> None:
        """Take back what `log_window` gave, as a checkpoint kept it."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        checkpoint = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        kept = last_checkpoint(self.args.output_dir, closely=False)
        way_out = f"{f'{kept} is as it was' if kept else 'No checkpoint was written yet'}; {_MORE_SPACE}"
        try:
            with phase(f"saving {checkpoint.name}"), writing(str(checkpoint), Path(self.args.output_dir), way_out):
                self._save_aside(model, trial, checkpoint)
        except BaseException:
            if self.args.should_save:
                discard(checkpoint)
            raise
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(checkpoint, self.args.save_total_limit, keep=() if best is None else (best,))

    def _save_aside(self, model: torch.nn.Module, trial: Any, checkpoint: Path) -> None:
        self._saving_in = aside(checkpoint).parent
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_in = None
        if self.state.best_model_checkpoint == str(aside(checkpoint)):
            self.state.best_model_checkpoint = str(checkpoint)
            if self.args.should_save:
                self.state.save_to_json(str(aside(checkpoint) / TRAINER_STATE))
        self._save_log_window(aside(checkpoint))
        wait_for_all()  # every rank writes: its random state, and under DeepSpeed its share of the optimizer
        if self.args.should_save:
            publish(checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._saving_in is None else str(self._saving_in)

    def _run_epoch(self, *args: Any, resume_from_checkpoint: str | None = None, **keywords: Any) -> None:
        if resume_from_checkpoint is not None and not self._resumed:
            self._restore_log_window(Path(resume_from_checkpoint))
        self._resumed = True
        super()._run_epoch(*args, resume_from_checkpoint=resume_from_checkpoint, **keywords)

    def _save_log_window(self, folder: Path) -> None:
        """A checkpoint between two log lines: without this the next line would be of the steps behind it alone."""
        if self.state.global_step > self._globalstep_last_logged:
            pending = {"since": self._globalstep_last_logged, "loss": self._tr_loss, "sums": self.log_window()}
            torch.save(pending, folder / _window_file(self.args.process_index))

    def _restore_log_window(self, checkpoint: Path) -> None:
        file = checkpoint / _window_file(self.args.process_index)
        if file.is_file():
            pending = torch.load(file, map_location="cpu", weights_only=True)
            self._globalstep_last_logged = pending["since"]
            self._tr_loss += pending["loss"].to(self._tr_loss.device)
            self.restore_log_window(pending["sums"])


def _window_file(rank: int) -> str:
    return f"log_window_{rank}.pt"
