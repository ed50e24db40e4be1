"""What a benchmark is: files it needs, questions in LLaVA's prompt form, and a score from the answers.

One file of `llava_pat/evaluation/tasks` holds one benchmark: its concrete `Benchmark` classes are found there by name,
so adding one is adding a file. Under the data root the folders are LLaVA's (docs/Evaluation.md of haotian-liu/LLaVA at
c121f04, `playground/data/eval`).
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from llava_pat.evaluation.judge import Judge
from llava_pat.evaluation.questions import Key, Question
from llava_pat.types import DataError

TASKS = "llava_pat.evaluation.tasks"

Answers = Mapping[Key, str]
"""`Question.key` -> the model's text. Ids would not do: MME asks two questions under one, TextVQA several."""

Script = Literal["loader", "vqa", "science", "mmbench"]
"""LLaVA's answering scripts (llava/eval/model_vqa*.py): they differ in the `prompt` of their answer lines."""


@dataclass(frozen=True)
class Needed:
    """A file or folder that a benchmark reads."""

    path: str
    """Relative to the benchmark's folder."""
    what: str
    where: str
    """A URL or page."""
    instead: tuple[str, ...] = ()
    """Other paths, any of which does as well."""

    def found(self, folder: Path) -> Path | None:
        """The first of `path` and `instead` that exists under the folder."""
        for name in (self.path, *self.instead):
            # "../mmbench/x" must do where the benchmark's own folder does not exist, and where it is a link elsewhere
            for place in (folder / name, Path(os.path.normpath(folder / name))):
                if place.exists():
                    return place
        return None


@dataclass(frozen=True)
class Scores:
    """What a benchmark says of the answers."""

    metrics: dict[str, float]
    """Name -> value, the headline first; empty where only a server can score. Percentages are 0 to 100."""
    submission: Path | None = None
    """The official submission file, if one was written."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers should know: unanswered questions, who judges, where to submit."""


class Benchmark(ABC):
    """A benchmark of the registry. Subclasses fill in the class variables; constructors need no argument."""

    name: ClassVar[str]
    title: ClassVar[str]
    folder: ClassVar[str]
    """Under the data root."""
    needs: ClassVar[tuple[Needed, ...]]
    max_new_tokens: ClassVar[int] = 128
    script: ClassVar[Script] = "loader"
    judge: Judge | None = None
    """Who judges free answers; set it on the benchmark. Only MM-Vet and LLaVA-Bench ask."""
    all_rounds: bool = False
    """Whether to ask once for every rotation of the options (LLaVA's --all-rounds). Only MMBench does."""

    def missing(self, root: Path) -> list[Needed]:
        """What of `needs` is not there."""
        return [needed for needed in self.needs if needed.found(root / self.folder) is None]

    def path(self, root: Path, name: str) -> Path:
        """Where the needed file or folder with this `path` is.

        Raises:
            DataError: it is not there; the message says where it comes from.
        """
        needed = next(needed for needed in self.needs if needed.path == name)
        found = needed.found(root / self.folder)
        if found is None:
            raise DataError(f"{self.name}: {describe(needed, root / self.folder)}")
        return found

    @abstractmethod
    def questions(self, root: Path) -> list[Question]:
        """The questions in the official order, their keys unique.

        Raises:
            DataError: a file is missing or is not what it should be.
        """

    @abstractmethod
    def score(self, root: Path, answers: Answers, out: Path | None = None) -> Scores:
        """Score the answers, or write the official submission file.

        Args:
            root: the data root.
            answers: by the key of the question. Questions without an answer count as the original scorer counts them,
                and a note says how many there are.
            out: folder for submission files; without it, `answers_upload` in the benchmark's folder (LLaVA's place).

        Raises:
            DataError: no answer at all, answers to questions that the benchmark does not have, a missing file.
        """

    def upload_folder(self, root: Path, out: Path | None) -> Path:
        """The folder for submission files, made if need be."""
        folder = out if out is not None else root / self.folder / "answers_upload"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def describe(needed: Needed, folder: Path) -> str:
    """One line for a person: the path that is missing, what it is, where it comes from."""
    others = "".join(f" (or {folder / name})" for name in needed.instead)
    return f"{folder / needed.path}{others} is missing: {needed.what}, from {needed.where}"


def texts_of(name: str, questions: Sequence[Question], answers: Answers) -> tuple[list[str | None], list[str]]:
    """The answer to each question, None where there is none, and a note on how many those are.

    Raises:
        DataError: nothing is answered, or something is answered that was not asked.
    """
    asked = {question.key for question in questions}
    foreign = [key for key in answers if key not in asked]
    if foreign:
        raise DataError(
            f"{name}: {len(foreign)} of {len(answers)} answers are to questions that it does not have (first: "
            f"{foreign[0]!r}); is this the answer file of another benchmark, or of another version of its files?"
        )
    if not answers:
        raise DataError(f"{name}: no answer to score; answer its {len(asked)} questions first")
    unanswered = len(asked) - len(answers)
    notes = [f"{unanswered} of {len(asked)} questions have no answer"] if unanswered else []
    return [answers.get(question.key) for question in questions], notes


@cache
def registry() -> dict[str, type[Benchmark]]:
    """Name -> class of every benchmark in `tasks/`, sorted by name.

    Raises:
        ValueError: two classes of one name.
    """
    found: dict[str, type[Benchmark]] = {}
    for module in pkgutil.iter_modules(importlib.import_module(TASKS).__path__):
        for value in vars(importlib.import_module(f"{TASKS}.{module.name}")).values():
            if not _is_benchmark(value, f"{TASKS}.{module.name}"):
                continue
            if value.name in found:
                raise ValueError(f"two benchmarks are called {value.name!r}: {found[value.name]} and {value}")
            found[value.name] = value
    return dict(sorted(found.items()))


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    known = registry()
    if name not in known:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(known)}")
    return known[name]()


def _is_benchmark(value: object, module: str) -> bool:
    """Whether a module itself defines this concrete benchmark (an imported class or a shared base is none)."""
    return (
        inspect.isclass(value)
        and issubclass(value, Benchmark)
        and value.__module__ == module
        and not inspect.isabstract(value)
        and "name" in vars(value)
    )
