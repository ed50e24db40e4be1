"""What is compared: a cell is one objective, one seed and one setting; it names its folders and its command lines."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path

import llava_pat.models  # noqa: F401  # first: it keeps bitsandbytes from talking on a CPU
from llava_pat.training.arguments import PRETRAIN
from llava_pat.training.finetune_arguments import FINETUNE
from llava_pat.types import DataError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "scripts" / "configs"
OBJECTIVES = ("none", "pat", "sea", "pat+sea")
SFT_SHARE = "sft_share"
"""The study's own flag of stage 2: the share of the conversations that is trained on."""
_LONGEST = 60
OF_OBJECTIVES = ("alignment", "patch_words", "regions_path")
"""What flags of alignment objectives begin with: they are stage 1's where no stage is named, and nothing to `none`."""
_KNOWN = {stage: {item.name for kind in kinds.kinds for item in fields(kind)} for stage, kinds in
          (("stage1", PRETRAIN), ("stage2", FINETUNE))}  # fmt: skip


@dataclass(frozen=True)
class Override:
    """`[OBJECTIVE:][stage1.|stage2.]FLAG=VALUE`: a flag of one stage that is not the config's."""

    stage: str
    flag: str
    value: str
    objective: str | None = None
    """None: of all objectives."""


def read_override(text: str) -> Override:
    """Read an override; without a stage it is the one that has such a flag, for flags of objectives stage 1.

    Raises DataError for what is no override and for a flag that neither stage has.
    """
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise DataError(f"{text!r}: expected FLAG=VALUE, such as alignment_weight=10 or stage2.learning_rate=2e-4")
    objective, colon, name = name.rpartition(":")
    stage, dot, flag = name.rpartition(".")
    if not dot:
        having = [which for which in _KNOWN if _has(which, flag)]
        if having == ["stage1", "stage2"] and flag.startswith(OF_OBJECTIVES):
            having = ["stage1"]
        if len(having) > 1:
            raise DataError(f"{text!r}: both stages have --{flag}: write stage1.{flag} or stage2.{flag}")
        if not having:
            raise DataError(f"{text!r}: neither stage has a flag --{flag} (python train/pretrain.py --help)")
        (stage,) = having
    if not _has(stage, flag):
        raise DataError(f"{text!r}: stage1 or stage2 and one of its flags is expected before the equals sign")
    return Override(stage, flag, value, objective if colon else None)


def _has(stage: str, flag: str) -> bool:
    return flag in _KNOWN.get(stage, ()) or (stage, flag) == ("stage2", SFT_SHARE)


@dataclass(frozen=True)
class Setting:
    """Overrides that hold together; none of them is the setting of the configs."""

    overrides: tuple[Override, ...] = ()

    def of(self, objective: str, stage: str) -> dict[str, str]:
        """Flag -> value for one stage of one objective's run; the last override of a flag stands."""
        return {
            one.flag: one.value
            for one in self.overrides
            if one.stage == stage
            and one.objective in (None, objective)
            # `none` has no use for these: its runs of such settings are one and the same
            and not (objective == "none" and one.flag.startswith(OF_OBJECTIVES))
        }


def settings_over(fixed: Iterable[str], over: Iterable[str]) -> list[Setting]:
    """Every combination of the values in `over` (FLAG=V1,V2,...), each on top of the `fixed` overrides (FLAG=VALUE).

    Values with commas of their own (JSON) are kept apart by semicolons.
    """
    base = [read_override(text) for text in fixed]
    axes = []
    for text in over:
        name, _, values = text.partition("=")
        axes.append([read_override(f"{name}={value}") for value in values.split(";" if ";" in values else ",")])
    return [Setting((*base, *chosen)) for chosen in product(*axes)]


@dataclass(frozen=True)
class Study:
    """What all cells share."""

    out: Path
    data: Path
    family: str = "playground"
    """Of the configs: FAMILY_pat.yaml, FAMILY_sea.yaml, ..., FAMILY_finetune.yaml."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Flags for both stages; none of them may change a result (workers, threads)."""

    def stage1_config(self, objective: str) -> Path:
        """The objective's own config, else PAT's, whose alignment is then overridden."""
        own = CONFIGS / f"{self.family}_{objective.replace('+', '_')}.yaml"
        return own if objective != "none" and own.is_file() else CONFIGS / f"{self.family}_pat.yaml"

    @property
    def stage2_config(self) -> Path:
        return CONFIGS / f"{self.family}_finetune.yaml"


@dataclass(frozen=True)
class Cell:
    """One objective, one seed, one setting: a run through both stages."""

    study: Study
    objective: str
    seed: int
    setting: Setting = Setting()

    @property
    def name(self) -> str:
        """Unique among the cells of a study."""
        return self._named("stage1", "stage2")

    @property
    def overrides(self) -> list[str]:
        """What of the setting this run feels."""
        stages = ("stage1", "stage2")
        return [f"{s}.{flag}={value}" for s in stages for flag, value in self.setting.of(self.objective, s).items()]

    @property
    def stage1(self) -> Path:
        """The run of stage 1; cells whose settings differ in stage 2 alone share it."""
        return self.study.out / "stage1" / f"llava-v1.5-pretrain-{self._named('stage1')}"

    @property
    def stage2(self) -> Path:
        return self.study.out / "stage2" / f"llava-v1.5-{self.name}"

    def result(self, split: str) -> Path:
        return self.study.out / "results" / split / f"{self.name}.json"

    def stage1_command(self) -> list[str]:
        config = self.study.stage1_config(self.objective)
        own = re.search(r"^alignment:\s*(\S+)", config.read_text(), re.MULTILINE)
        named = {} if own is not None and own[1] == self.objective else {"alignment": self.objective}
        flags = {**named, "eval_strategy": "no", **self._data("pretrain"), **self._labels()}
        flags |= self.setting.of(self.objective, "stage1")
        return self._command("train/pretrain.py", config, self.stage1, flags)

    @property
    def labels(self) -> Path | None:
        """The folder of patch labels (SEA) that stage 1 reads; None where it reads none."""
        path = (self._labels() | self.setting.of(self.objective, "stage1")).get("patch_words_path")
        return None if path is None else ROOT / path

    def labels_command(self) -> list[str]:
        """Makes these labels; done already, it says so."""
        _, _, *training = self.stage1_command()
        config, flags = training[1], training[2:]
        return [sys.executable, "-m", "llava_pat.labelling", "--config", config, "--for_training", *flags]

    def _labels(self) -> dict[str, str]:
        """Beside the data; for switches that are not the config's, a folder of their own."""
        config = self.study.stage1_config(self.objective)
        if self.objective == "none" or not re.search(r"^patch_words_path:", config.read_text(), re.MULTILINE):
            return {}
        switches = {f: v for f, v in self.setting.of(self.objective, "stage1").items() if f.startswith("patch_words")}
        if not switches:
            return {"patch_words_path": shown(self.study.data / "patch_words")}
        digest = hashlib.sha256(repr(sorted(switches.items())).encode()).hexdigest()[:8]
        return {"patch_words_path": shown(self.study.out / "labels" / digest)}

    def stage2_command(self, subset: Path | None = None) -> list[str]:
        """subset: conversations to train on in place of all (see subset.py)."""
        flags = {**self._data("instruct"), **self.setting.of(self.objective, "stage2")}
        flags.pop(SFT_SHARE, None)
        flags["pretrain_mm_mlp_adapter"] = shown(self.stage1 / "mm_projector.bin")
        if subset is not None:
            flags["data_path"] = shown(subset)
        return self._command("train/finetune.py", self.study.stage2_config, self.stage2, flags)

    @property
    def sft_share(self) -> float:
        """Of the conversations, 0 to 1. DataError when it is no such number."""
        text = self.setting.of(self.objective, "stage2").get(SFT_SHARE, "1")
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise DataError(f"{SFT_SHARE}={text}: a share of the conversations is expected, above 0 and at most 1")
        return share

    def _data(self, kind: str) -> dict[str, str]:
        data = self.study.data
        return {
            "data_path": shown(data / f"{kind}_train.json"),
            "image_folder": shown(data / "images"),
            "regions_path": shown(data / "regions_train.jsonl"),
            "eval_data_path": shown(data / f"{kind}_val.json"),
            "eval_regions_path": shown(data / "regions_val.jsonl"),
            "vocabulary_path": shown(data / "vocabulary.json"),
        }

    def _command(self, script: str, config: Path, folder: Path, flags: Mapping[str, str]) -> list[str]:
        command = [sys.executable, script, "--config", shown(config), "--seed", str(self.seed)]
        flags = {**self.study.shared, **flags}
        return command + [word for flag, value in flags.items() for word in (f"--{flag}", value)] + [
            "--output_dir", shown(folder),
        ]  # fmt: skip

    def _named(self, *stages: str) -> str:
        parts = [
            f"{flag}={value}" if stage == "stage1" else f"2.{flag}={value}"
            for stage in stages
            for flag, value in self.setting.of(self.objective, stage).items()
        ]
        words = re.sub(r"[^\w.=+-]+", "_", ",".join(parts).replace(",", "-"))
        if len(words) > _LONGEST or words != ",".join(parts).replace(",", "-"):
            words = f"{words[:_LONGEST]}-{hashlib.sha256(','.join(parts).encode()).hexdigest()[:8]}"
        objective = re.sub(r"[^\w.+-]+", "-", self.objective.replace(".", "-"))
        return f"{objective}-seed{self.seed}" + (f"-{words}" if words else "")


def cells_of(study: Study, objectives: Sequence[str], seeds: Sequence[int], settings: Sequence[Setting]) -> list[Cell]:
    """All of them, seed by seed, so that what is finished early can be compared; equal runs are there once."""
    found: dict[str, Cell] = {}
    for seed in seeds:
        for setting in settings:
            for objective in objectives:
                cell = Cell(study, objective, seed, setting)
                found.setdefault(cell.name, cell)
    return list(found.values())


def shown(path: Path) -> str:
    """Relative to the repository where it is inside: committed command lines name no machine's folders."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
