"""Annotation's settings: YAML in, the same out, every mistake named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from llava_pat.annotation.config import AnnotationConfig, dump_config, load_config, parse_config
from llava_pat.annotation.detectors import DETECTORS
from llava_pat.annotation.segmenters import SEGMENTERS
from llava_pat.annotation.stages import Segmenter
from llava_pat.annotation.taggers import TAGGERS
from llava_pat.types import DataError


@dataclass(frozen=True)
class OwnOptions:
    width: int = 3


class Own(Segmenter):
    """Somebody's segmenter."""

    Options = OwnOptions

    def __init__(self, options, place) -> None:
        self.options = options

    def segment(self, images, boxes):
        return [[None] * len(own) for own in boxes]

    @property
    def version(self) -> str:
        return f"own {self.options.width}"


def test_every_default_is_written_out_and_read_again(tmp_path: Path) -> None:
    content = dump_config(AnnotationConfig())
    assert content["detector"]["box_threshold"] == 0.35 and content["selection"]["nms_iou"] == 0.5
    file = tmp_path / "annotation.yaml"
    file.write_text(yaml.safe_dump(content))
    assert dump_config(load_config(file)) == content
    file.write_text("")
    assert load_config(file) == AnnotationConfig()


def test_settings_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "annotation.yaml"
    file.write_text(
        "tagger: caption\ndetector: {kind: owlv2, threshold: 0}\nsegmenter: {kind: sam, multimask: true}\n"
        "selection: {max_regions: 5, bad_mask: box}\nlabels: {singularise: false}\ndtype: bfloat16\nbatch_size: 2\n"
    )
    config = load_config(file)
    assert config.detector.kind == "owlv2" and config.selection.max_regions == 5 and not config.labels.singularise
    assert dump_config(config)["detector"]["threshold"] == 0
    assert config.labels.build().apply("dogs") == "dogs"


def test_anybodys_class_by_its_dotted_path() -> None:
    config = parse_config({"segmenter": {"kind": f"{__name__}.Own", "width": 7}})
    assert config.build_segmenter().version == "own 7"
    assert parse_config({"segmenter": "boxes"}).build_segmenter().version == "boxes"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"detctor": {}}, "has no 'detctor'; it has tagger, detector"),
        ({"detector": {"kind": "yolo"}}, "kind is 'yolo', expected one of"),
        ({"detector": {"model": "x"}}, "detector: lacks a kind"),
        (
            {"detector": {"kind": "grounding_dino", "text_threshold": 0.25}},
            "has no 'text_threshold'; it has model",
        ),
        (
            {"detector": {"kind": "grounding_dino", "box_threshold": "high"}},
            "box_threshold is 'high', expected",
        ),
        ({"detector": {"kind": "grounding_dino", "box_threshold": 2}}, "box_threshold is 2"),
        ({"detector": {"kind": "grounding_dino", "batch_size": True}}, "batch_size is True"),
        ({"segmenter": {"kind": "no.such.Class"}}, "no.such.Class cannot be imported"),
        ({"segmenter": {"kind": "llava_pat.annotation.selection.Nothing"}}, "cannot be imported"),
        ({"selection": {"max_regions": 0}}, "max_regions 0"),
        ({"selection": ["a"]}, "selection: is a list"),
        ({"labels": {"max_labels": 0}}, "max_labels is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"batch_size": 0}, "batch_size 0"),
        ([], "not a list"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, raw, message: str) -> None:
    file = tmp_path / "annotation.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(DataError, match="annotation.yaml: ") as caught:
        load_config(file)
    assert message in str(caught.value)


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    for name in ("broken.yaml", "nowhere.yaml"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as YAML"):
            load_config(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_area: 2024-13-45", "month must be in"), ("[" * 2000, "nested too deeply"),
        ("device: cpu\nmin_area: 0.1\ndevice: cuda", "line 3: 'device' is on line 1 as well"),
        ("device: " + "9" * 5000, "Exceeds the limit"),
    ],
)  # fmt: skip
def test_yaml_that_is_no_settings_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=f"run.yaml: cannot be read as YAML.*{message}"):
        load_config(file)


@pytest.mark.parametrize("registry", [TAGGERS, DETECTORS, SEGMENTERS])
def test_every_implementation_has_options_with_defaults(registry: dict[str, type]) -> None:
    for name, kind in registry.items():
        assert kind.Options() is not None, name
        assert kind.__doc__, name
