"""All settings of annotation in one frozen dataclass; a YAML file has the same names.

    tagger: {kind: caption}
    detector: {kind: grounding_dino, model: IDEA-Research/grounding-dino-base, box_threshold: 0.35}
    segmenter: {kind: sam2, model: facebook/sam2.1-hiera-large}
    selection: {nms_iou: 0.5, max_regions: 30}
    labels: {synonyms: my_synonyms.yaml}
    device: cuda
    batch_size: 8

A stage's other keys are its own options (the Options of its class). `kind` is a name of TAGGERS, DETECTORS, SEGMENTERS,
or the dotted path of anybody's class with such Options, called with (options, placement).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llava_pat.annotation.decoding import BOMB_PIXELS
from llava_pat.annotation.detectors import DETECTORS
from llava_pat.annotation.label_rules import LabelRules, load_synonyms
from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.segmenters import SEGMENTERS
from llava_pat.annotation.selection import SelectionOptions
from llava_pat.annotation.stages import Detector, Segmenter, Tagger
from llava_pat.annotation.taggers import TAGGERS
from llava_pat.data.yaml_file import BadYaml, read_yaml_file
from llava_pat.types import DataError


@dataclass(frozen=True)
class StageChoice:
    """Which implementation of a stage, and its options."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelOptions:
    """How labels become the same words; see label_rules.py."""

    synonyms: str | None = None
    """A YAML or JSON file, {name: [other names]}; it goes before the built-in ones."""
    builtin_synonyms: bool = True
    singularise: bool = True
    """The last word's plural goes."""
    max_labels: int = 40
    """Of an image, the tagger's first ones: every detector becomes slow or confused with more."""

    def build(self) -> LabelRules:
        if self.synonyms is not None:
            return LabelRules(load_synonyms(self.synonyms, self.builtin_synonyms), self.singularise)
        return LabelRules(None if self.builtin_synonyms else {}, self.singularise)

    def __post_init__(self) -> None:
        if self.max_labels < 1:
            raise DataError(f"labels: max_labels is {self.max_labels}, expected at least 1")


@dataclass(frozen=True)
class AnnotationConfig:
    """Everything that decides what a regions file has."""

    tagger: StageChoice = StageChoice("caption")
    detector: StageChoice = StageChoice("grounding_dino")
    segmenter: StageChoice = StageChoice("sam2")
    """boxes: none; also with the detector sam3, whose masks are taken."""
    selection: SelectionOptions = SelectionOptions()
    labels: LabelOptions = LabelOptions()
    device: str = "cpu"
    dtype: str = "float32"
    """Of all models: float32, or bfloat16 or float16 by autocast."""
    batch_size: int = 8
    """Images that go through the stages together; a stage may cut them smaller (its own batch_size)."""
    max_pixels: int = BOMB_PIXELS
    """Larger images are left out; the default is where Pillow warns of decompression bombs."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_pixels < 1:
            raise DataError(f"annotation: batch_size {self.batch_size}, max_pixels {self.max_pixels}: both at least 1")
        _ = self.placement.torch_dtype
        for stage, registry in STAGES.items():
            find_options(stage, getattr(self, stage), registry)

    @property
    def placement(self) -> Placement:
        return Placement(self.device, self.dtype)

    def build_tagger(self) -> Tagger:
        return _build("tagger", self.tagger, self.placement)

    def build_detector(self) -> Detector:
        return _build("detector", self.detector, self.placement)

    def build_segmenter(self) -> Segmenter:
        return _build("segmenter", self.segmenter, self.placement)


STAGES: Mapping[str, Mapping[str, type]] = {
    "tagger": TAGGERS,
    "detector": DETECTORS,
    "segmenter": SEGMENTERS,
}


def load_config(path: str | Path) -> AnnotationConfig:
    """A YAML file -> config. DataError names the file and the key that is wrong."""
    settings = read_settings(path)
    try:
        return parse_config(settings)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_settings(path: str | Path) -> dict[str, Any]:
    """What a YAML file says, not yet checked; an empty one says nothing."""
    try:
        raw = read_yaml_file(path)
    except (OSError, BadYaml) as error:
        raise DataError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, Mapping | None):
        raise DataError(f"{path}: annotation settings are a mapping, not a {type(raw).__name__}")
    return dict(raw or {})


def parse_config(raw: Any) -> AnnotationConfig:
    """The mapping that a YAML file holds -> config."""
    if not isinstance(raw, Mapping):
        raise DataError(f"annotation settings are a mapping, not a {type(raw).__name__}")
    values = dict(raw)
    for stage in STAGES.keys() & values.keys():
        chosen = {"kind": values[stage]} if isinstance(values[stage], str) else values[stage]
        if not isinstance(chosen, Mapping) or not isinstance(chosen.get("kind"), str):
            raise DataError(f"{stage}: lacks a kind, one of {sorted(STAGES[stage])} or a dotted path")
        values[stage] = StageChoice(chosen["kind"], {key: chosen[key] for key in chosen if key != "kind"})
    for part, kind in (("selection", SelectionOptions), ("labels", LabelOptions)):
        if part in values:
            values[part] = build_options(part, kind, values[part])
    return build_options("annotation", AnnotationConfig, values)


def dump_config(config: AnnotationConfig) -> dict[str, Any]:
    """The mapping that parse_config reads, every default written out."""
    content = asdict(config)
    for stage, registry in STAGES.items():
        choice = getattr(config, stage)
        content[stage] = {"kind": choice.kind} | asdict(find_options(stage, choice, registry))
    return content


def find_options(stage: str, choice: StageChoice, registry: Mapping[str, type]) -> Any:
    """A stage's Options, checked."""
    return build_options(f"{stage} {choice.kind}", find_kind(stage, choice.kind, registry).Options, choice.options)


def find_kind(stage: str, kind: str, registry: Mapping[str, type]) -> type:
    """The class by its name in the registry, or by its dotted path."""
    if kind in registry:
        return registry[kind]
    module, _, name = kind.rpartition(".")
    if not module:
        raise DataError(f"{stage}: kind is {kind!r}, expected one of {sorted(registry)} or a dotted path to a class")
    try:
        return vars(importlib.import_module(module))[name]
    except (ImportError, KeyError) as error:
        raise DataError(f"{stage}: {kind} cannot be imported: {error}") from error


def build_options(what: str, kind: type, values: Any) -> Any:
    """A dataclass of options from a mapping; DataError for an unknown key or a value of another type."""
    if not isinstance(values, Mapping):
        raise DataError(f"{what}: is a {type(values).__name__}, not a mapping of options")
    known = {entry.name: entry for entry in fields(kind)}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise DataError(f"{what}: has no {', '.join(map(repr, unknown))}; it has {', '.join(known) or 'no options'}")
    for key, value in values.items():
        default = known[key].default
        wanted = (int, float) if isinstance(default, float) else type(default)
        if isinstance(default, (bool, int, float, str)) and (
            not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise DataError(f"{what}: {key} is {value!r}, expected such as {default!r}")
    return kind(**values)


def _build(stage: str, choice: StageChoice, place: Placement) -> Any:
    registry = STAGES[stage]
    return find_kind(stage, choice.kind, registry)(find_options(stage, choice, registry), place)
