"""CIDEr, BLEU, ROUGE-L, METEOR and SPICE of captions: pycocoevalcap's figures, times 100 as papers print them.

pycocoevalcap tokenizes with Stanford's PTB tokenizer, which is Java; METEOR and SPICE are Java too, and SPICE needs
Stanford's models (400 MB), which pycocoevalcap would download by itself. What this machine lacks is left out with a
note. Without Java, a plain tokenizer stands in and every figure is called `<name>_plain_tokens`: close to the real one
(the tests say how close), but not the one that papers print.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_pat.types import DataError

PLAIN = "_plain_tokens"
"""Ends the names of figures that were computed without the PTB tokenizer."""

_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_WORD = re.compile(r"\w+(?:[.,]\d+)*(?:-\w+)*|'\w+")


@dataclass(frozen=True)
class CaptionScores:
    """Figures over a set of captions."""

    metrics: dict[str, float]
    """CIDEr first, then BLEU-1 to -4, ROUGE-L, METEOR and SPICE as far as they could be computed; times 100."""
    cider: dict[str | int, float]
    """Of every caption, times 100; the words' weights are those of the whole set."""
    notes: list[str]
    """What is missing, and why."""


def caption_scores(
    references: Mapping[str | int, Sequence[str]], captions: Mapping[str | int, str], java: bool | None = None
) -> CaptionScores:
    """Score one caption per image against its references.

    CIDEr's word weights come from the references that are given: a part of a set is not comparable with the whole.

    Args:
        references: image id -> its references; the ids of `captions`.
        captions: image id -> the model's caption, which may be empty.
        java: whether to use Java; None: if it is there.

    Raises:
        DataError: pycocoevalcap is not installed, there are no captions, or an image has no reference.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise DataError("captions are scored by pycocoevalcap, which is not installed: pip install pycocoevalcap==1.2")
    if not captions or references.keys() != captions.keys():
        raise DataError(
            f"{len(captions)} captions for {len(references)} images; captions of the same images are needed"
        )
    bare = [image for image, texts in references.items() if not texts]
    if bare:
        raise DataError(f"image {bare[0]!r} has no reference caption")
    java = has_java() if java is None else java
    tokenize = _ptb_tokens if java else _plain_tokens
    expected = tokenize({image: list(references[image]) for image in captions})
    found = tokenize({image: [captions[image]] for image in captions})
    metrics, each, notes = _python_metrics(expected, found)
    if java:
        metrics["METEOR"] = 100 * _meteor(expected, found)
        if has_spice_models():
            metrics["SPICE"] = 100 * _spice(expected, found)
        else:
            notes.append(
                "SPICE is left out: its models are not there. Get them (400 MB) with: "
                "python -c 'from pycocoevalcap.spice.get_stanford_models import *; get_stanford_models()'"
            )
    else:
        metrics = {f"{name}{PLAIN}": value for name, value in metrics.items()}
        notes.append(
            "no working java: a plain tokenizer stands in for the PTB tokenizer, the figures are not the published "
            "metric; METEOR and SPICE are left out (Debian: apt install default-jre-headless)"
        )
    return CaptionScores(metrics, dict(zip(found, each, strict=True)), notes)


def has_java() -> bool:
    """Whether `java` runs: macOS has one that only says where to buy the real thing."""
    return (
        shutil.which("java") is not None and subprocess.run(["java", "-version"], capture_output=True).returncode == 0
    )


def has_spice_models() -> bool:
    """Whether Stanford's models for SPICE are beside pycocoevalcap's jars."""
    folder = Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0]) / "spice" / "lib"
    return all((folder / name).is_file() for name in _SPICE_MODELS)


def _python_metrics(expected: dict, found: dict) -> tuple[dict[str, float], list[float], list[str]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    cider, each = Cider().compute_score(expected, found)
    bleu, _ = Bleu(4).compute_score(expected, found, verbose=0)
    rouge, _ = Rouge().compute_score(expected, found)
    metrics = {"CIDEr": cider, **{f"BLEU-{n}": value for n, value in enumerate(bleu, start=1)}, "ROUGE-L": rouge}
    notes = []
    if len(found) == 1:
        notes.append("CIDEr of a single image is 0 by its definition: every word is in all documents")
    return {name: 100 * float(value) for name, value in metrics.items()}, [100 * float(value) for value in each], notes


def _meteor(expected: dict, found: dict) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor().compute_score(expected, found)[0]


def _spice(expected: dict, found: dict) -> float:
    from pycocoevalcap.spice.spice import Spice

    return float(Spice().compute_score(expected, found)[0])


def _ptb_tokens(captions: dict[str | int, list[str]]) -> dict[str | int, list[str]]:
    """By pycocoevalcap's own tokenizer, one caption a line.

    For Java a carriage return, a form feed or U+2028 ends a line as well: a caption with one of them would move all
    later captions to wrong images, without a word. So white space becomes single spaces first.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = {image: [{"caption": _one_line(text)} for text in texts] for image, texts in captions.items()}
    tokens = PTBTokenizer().tokenize(lines)
    wrong = [image for image, texts in captions.items() if len(tokens.get(image, ())) != len(texts)]
    if wrong:
        raise DataError(f"the PTB tokenizer returned another number of captions than it got, first for {wrong[0]!r}")
    return tokens


def _plain_tokens(captions: dict[str | int, list[str]]) -> dict[str | int, list[str]]:
    return {image: [" ".join(_WORD.findall(text.lower())) for text in texts] for image, texts in captions.items()}


def _one_line(text: str) -> str:
    printable = text.encode("utf-8", errors="replace").decode()  # a lone surrogate cannot be written to a file
    return " ".join(printable.replace("\0", " ").split())
