"""What a stage writes of the model into a folder, and reads back to go on.

    ProjectorWeights   stage 1: the projector alone
    FullWeights        stage 2: a checkpoint in LLaVA's layout
    LoraWeights        stage 2 by adapters: LLaVA's LoRA folder

Beside each stand the alignment objective's own parameters, if it has any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llava_pat.models.adapters import load_lora, save_lora
from llava_pat.models.checkpoint import load_objective, load_projector, save_config, save_objective, save_projector
from llava_pat.models.llava_layout import copy_tokenizer, language_tensors, save_llava, write_generation_config
from llava_pat.models.restore import load_llava
from llava_pat.training.checkpoints import gathered
from llava_pat.training.task import AlignedTraining


class Weights(ABC):
    """config: the config.json that LLaVA would leave in the folder."""

    has_tokenizer = False  # whether tokenizer and generation_config.json are part of the folder

    def __init__(self, task: AlignedTraining, config: Mapping[str, Any]) -> None:
        self.task = task
        self.config = dict(config)

    def save(self, folder: Path, write: bool, final: bool) -> None:
        """Into `folder`. Every rank calls it (ZeRO-3 gathers with all of them); one has `write`.

        final: the finished checkpoint, in the precision that people load; otherwise every bit, to go on from.
        """
        self._save_model(folder, write, final)
        with gathered(self.task.objective):
            if write:
                save_objective(self.task.objective, folder)

    def load(self, folder: Path) -> None:
        """What `save` wrote with final False. Raises ValueError or FileNotFoundError when anything is missing."""
        self._load_model(folder)
        load_objective(folder, self.task.objective)

    def save_companions(self, folder: Path) -> None:
        """The small files beside the weights; for a trial of saving."""
        save_config(self.config, folder)

    def bytes_on_disk(self) -> int:
        """About what a finished folder takes: by default everything that trains."""
        return sum(_size(parameter) for parameter in self.task.parameters() if parameter.requires_grad)

    @abstractmethod
    def _save_model(self, folder: Path, write: bool, final: bool) -> None: ...

    @abstractmethod
    def _load_model(self, folder: Path) -> None: ...


class ProjectorWeights(Weights):
    """mm_projector.bin, mm_projector.safetensors, config.json: always in the projector's own precision."""

    def _save_model(self, folder: Path, write: bool, final: bool) -> None:
        with gathered(self.task.model.projector):
            if write:
                save_projector(self.task.model.projector, folder)
                save_config(self.config, folder)

    def _load_model(self, folder: Path) -> None:
        load_projector(folder, self.task.model.projector)


class FullWeights(Weights):
    """A checkpoint in LLaVA's layout.

    dtype: of a finished one. tokenizer_source: the folder or hub id whose tokenizer files go along. with_tower: whether
    the tower is part of it, because this run or an earlier one trained it.
    """

    has_tokenizer = True

    def __init__(
        self,
        task: AlignedTraining,
        config: Mapping[str, Any],
        dtype: torch.dtype,
        tokenizer_source: str,
        with_tower: bool,
    ) -> None:
        super().__init__(task, config)
        self.dtype, self.tokenizer_source, self.with_tower = dtype, tokenizer_source, with_tower

    def save_companions(self, folder: Path) -> None:
        super().save_companions(folder)
        language_tensors(self.task.model.llm)  # says so if the layout has no names for such a language model
        copy_tokenizer(self.tokenizer_source, folder, int(self.config["tokenizer_model_max_length"]))
        write_generation_config(self.task.model.llm.generation_config.to_diff_dict(), folder)

    def bytes_on_disk(self) -> int:
        model = self.task.model
        parts = [model.llm, model.projector, *([model.tower] if self.with_tower else [])]
        return sum(_count(parameter) * self.dtype.itemsize for part in parts for parameter in part.parameters())

    def _save_model(self, folder: Path, write: bool, final: bool) -> None:
        save_llava(
            self.task.model,
            folder,
            self.config,
            tokenizer_source=self.tokenizer_source,
            dtype=self.dtype if final else None,
            with_tower=self.with_tower,
            write=write,
        )

    def _load_model(self, folder: Path) -> None:
        load_llava(self.task.model, folder, self.with_tower)


class LoraWeights(Weights):
    """LLaVA's LoRA folder: adapters, projector, config.json."""

    def __init__(self, task: AlignedTraining, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__(task, config)
        self.dtype = dtype

    def _save_model(self, folder: Path, write: bool, final: bool) -> None:
        save_lora(self.task.model, folder, self.config, dtype=self.dtype if final else None, write=write)

    def _load_model(self, folder: Path) -> None:
        load_lora(self.task.model, folder)


def _count(parameter: torch.nn.Parameter) -> int:
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()  # ZeRO-3 leaves an empty shell


def _size(parameter: torch.nn.Parameter) -> int:
    return _count(parameter) * parameter.element_size()
