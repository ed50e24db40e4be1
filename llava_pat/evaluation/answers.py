"""Answer files: LLaVA's JSONL, written so that a killed run loses nothing and repeats nothing.

One line an answer, as llava/eval/model_vqa*.py of haotian-liu/LLaVA at c121f04 writes it:

    {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import shortuuid

from llava_pat.evaluation.questions import Key, Question
from llava_pat.types import DataError

logger = logging.getLogger(__name__)

_NEEDED = ("question_id", "prompt", "text")


def answer_line(question: Question, text: str, model_id: str) -> dict[str, Any]:
    """LLaVA's line for one answer, in its order of keys (options and round_id of MMBench included)."""
    further = dict(question.line)
    round_id = {"round_id": further.pop("round_id")} if "round_id" in further else {}  # MMBench's stands up here
    line = {"question_id": question.id, **round_id, "prompt": question.written_prompt, "text": text, **further}
    return line | {"answer_id": shortuuid.uuid(), "model_id": model_id, "metadata": {}}


def line_key(line: Mapping[str, Any]) -> Key:
    """Question.key of the question that the line answers."""
    return (line["question_id"], line.get("round_id"), line["prompt"])


def read_answers(file: str | Path, *, repair: bool = False) -> dict[Key, dict[str, Any]]:
    """The lines of an answer file by `line_key`, in the file's order.

    A last line that a kill cut short is left out, and logged; repair: it is also cut off the file, so that lines may be
    appended. Raises DataError with line numbers for a broken line elsewhere, and for two answers to one question;
    FileNotFoundError where there is no file.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"answer file {file} does not exist")
    answers: dict[Key, dict[str, Any]] = {}
    at: dict[Key, int] = {}
    for number, line in enumerate(_whole_lines(file, repair), start=1):
        key = line_key(line)
        if key in answers:
            raise DataError(
                f"{file}: lines {at[key]} and {number} both answer question {key[0]!r} ({key[2][:60]!r}); keep one"
            )
        answers[key], at[key] = line, number
    return answers


def answers_by_id(questions: Sequence[Question], lines: Mapping[Key, Mapping[str, Any]]) -> dict[str | int, str]:
    """Question id -> text, for the questions that have an answer. Raises DataError where ids are not unique."""
    texts: dict[str | int, str] = {}
    for question in questions:
        if question.key not in lines:
            continue
        if question.id in texts:
            raise DataError(f"{question.where}: id {question.id!r} is there twice; read these answers by Question.key")
        texts[question.id] = lines[question.key]["text"]
    return texts


class AnswerFile:
    """An answer file open for more answers. One process at a time; what is there already is in `answers`.

    Lines have left the process when `append` returns: a kill loses at most the line it interrupts, and the next opening
    cuts that one off.
    """

    def __init__(self, file: str | Path) -> None:
        """Raises DataError as `read_answers`, and BlockingIOError when another process writes to the file."""
        self.file = Path(file)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.file.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stream.close()
            raise BlockingIOError(
                error.errno, f"another process is writing answers to {file}; wait, or end it, or choose another file"
            ) from error
        self.answers = read_answers(self.file, repair=True)

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """More answers. Raises DataError for a question that has one."""
        new = list(lines)
        for line in new:
            if line_key(line) in self.answers:
                raise DataError(f"{self.file}: question {line['question_id']!r} has an answer already")
            self.answers[line_key(line)] = dict(line)
        self._stream.write("".join(_dump(line) for line in new))
        self._stream.flush()

    def sort(self, keys: Sequence[Key]) -> None:
        """Rewrites the file in this order, at once or not at all. Raises DataError for an answer to something else."""
        refuse_foreign(self.file, self.answers, keys)
        ordered = {key: self.answers[key] for key in keys if key in self.answers}
        if list(ordered) == list(self.answers):
            return
        beside = self.file.with_name(f"{self.file.name}.partial")
        beside.write_text("".join(_dump(line) for line in ordered.values()), encoding="utf-8")
        os.replace(beside, self.file)
        self.answers = ordered
        self._stream.close()  # the name stands for the new file now
        self._stream = self.file.open("a", encoding="utf-8")
        fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def refuse_foreign(file: Path, answers: Mapping[Key, object], keys: Sequence[Key]) -> None:
    """DataError when the file answers questions that are not asked: it is another benchmark's or another chunk's."""
    foreign = [key for key in answers if key not in set(keys)]
    if foreign:
        raise DataError(
            f"{file}: {len(foreign)} of its {len(answers)} answers are to questions that are not asked here (first: "
            f"question_id {foreign[0][0]!r}, {foreign[0][2][:60]!r}); choose another answer file, or remove this one"
        )


def _whole_lines(file: Path, repair: bool) -> list[dict[str, Any]]:
    content = file.read_bytes()
    lines = []
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        stop = len(content) if end < 0 else end
        line = _parsed(content[start:stop])
        if line is None:
            if end >= 0 and content[end + 1 :].strip():
                raise DataError(f"{file}:{len(lines) + 1}: no answer line ({content[start:stop][:60]!r}); remove it")
            logger.warning(
                "%s: its last line, %d bytes, was cut short (%r): %s; the question will be answered again",
                file, len(content) - start, content[start : start + 60], "cut off" if repair else "left out",
            )  # fmt: skip
            if repair:
                os.truncate(file, start)
            return lines
        lines.append(line)
        start = stop + 1
    if repair and content and not content.endswith(b"\n"):
        with file.open("ab") as stream:
            stream.write(b"\n")
    return lines


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The line's object, None unless it has what an answer needs."""
    try:
        line = json.loads(raw)
    except ValueError:  # not JSON, or a character cut in two
        return None
    return line if isinstance(line, dict) and all(name in line for name in _NEEDED) else None


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"
