"""One name for one thing: labels from captions, tag lists and detectors become the same words.

clean_label (labels.py), then the last word's plural, then the synonyms:

    "The Two  Dogs." -> "dog"           articles and counts in front go
    "a TV" -> "television"              SYNONYMS, which a file may extend or overrule

A synonyms file is YAML or JSON, {name: [other names]}, the first being what labels become:

    television: [tv, tv set, telly]
    sofa: [couch, settee]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_pat.annotation.labels import clean_label
from llava_pat.annotation.plurals import singular
from llava_pat.data.yaml_file import BadYaml, read_yaml_file
from llava_pat.types import DataError

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "television": ("tv", "tv set", "television set", "telly"),
    "sofa": ("couch", "settee"),
    "bicycle": ("bike", "push bike", "pushbike"),
    "motorcycle": ("motorbike", "motor bike", "motor cycle"),
    "airplane": ("aeroplane", "plane", "air plane"),
    "cell phone": ("cellphone", "mobile phone", "smartphone", "smart phone"),
    "refrigerator": ("fridge",),
    "car": ("automobile", "auto", "motorcar"),
    "photograph": ("photo",),
    "gray": ("grey",),
    "donut": ("doughnut",),
    "frisbee": ("flying disc", "flying disk"),
    "trash can": ("garbage can", "rubbish bin", "dustbin", "waste bin"),
    "sidewalk": ("footpath",),
    "sneaker": ("running shoe", "tennis shoe"),
    "laptop": ("laptop computer", "notebook computer"),
    "person": ("human", "human being"),
}
"""Words for the same thing, no broader or narrower ones: "man" is not merged into "person"."""

COUNTS = frozenset(
    """
    one two three four five six seven eight nine ten eleven twelve dozen dozens hundred hundreds thousand thousands
    several many few some multiple numerous various both all every each another other any couple pair
    """.split()
)
"""Words in front of a label that say how many, not what."""


class LabelRules:
    """Cleans a label; the same rules for every stage."""

    def __init__(self, synonyms: Mapping[str, Iterable[str]] | None = None, singularise: bool = True) -> None:
        """synonyms: name -> other names; None: SYNONYMS. Raises DataError when one name stands for two things."""
        self.singularise = singularise
        self._names: dict[str, str] = {}
        for name, others in (SYNONYMS if synonyms is None else synonyms).items():
            target = self._fold(name)
            for other in others:
                source = self._fold(other)
                if self._names.setdefault(source, target) != target:
                    raise DataError(f"synonyms: {other!r} is another name of {self._names[source]!r} and of {name!r}")
        for source, target in self._names.items():
            if target in self._names and self._names[target] != target:
                raise DataError(f"synonyms: {source!r} becomes {target!r}, which becomes {self._names[target]!r}")

    def apply(self, label: str) -> str:
        """The label that the regions file has; "" where nothing is left."""
        folded = self._fold(label)
        return self._names.get(folded, folded)

    def apply_all(self, labels: Iterable[str]) -> list[str]:
        """In their order, each once, without those of which nothing is left."""
        return [label for label in dict.fromkeys(map(self.apply, labels)) if label]

    def _fold(self, label: str) -> str:
        words = clean_label(label).split()
        while len(words) > 1 and (words[0] in COUNTS or words[0].isdecimal()):
            words = clean_label(" ".join(words[1:])).split()  # "all the dogs": an article may follow
        if words and self.singularise:
            words[-1] = singular(words[-1])
        return " ".join(words)


def load_synonyms(path: str | Path, extend: bool = True) -> dict[str, list[str]]:
    """A synonyms file; extend: SYNONYMS are in it where the file does not speak of their words."""
    try:
        raw: Any = read_yaml_file(path)
    except (OSError, BadYaml) as error:
        raise DataError(f"{path}: cannot be read as synonyms: {error}") from error
    if not isinstance(raw, dict) or not all(
        isinstance(name, str) and isinstance(others, list) and all(isinstance(other, str) for other in others)
        for name, others in raw.items()
    ):
        raise DataError(f"{path}: synonyms are {{name: [other names]}}, all of them text")
    if not extend:
        return raw
    spoken_of = {clean_label(word) for name, others in raw.items() for word in (name, *others)}
    found = {name: [*others] for name, others in raw.items()}
    for name, others in SYNONYMS.items():
        free = [other for other in others if other not in spoken_of]
        if free and name not in spoken_of:
            found[name] = free
    return found
