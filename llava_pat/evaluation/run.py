"""All questions of a benchmark, answered into a file: sharded over ranks, resumable, with provenance beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava_pat.evaluation.model import Answerer
from llava_pat.evaluation.questions import Question


def answer_questions(
    answerer: Answerer,
    questions: Sequence[Question],
    file: str | Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
    restart: bool = False,
) -> None:
    """Answers what `file` does not hold yet; afterwards it holds all answers, in the questions' order.

    Every rank calls it (under torchrun `start_ranks` gives rank and world_size); all return when the file is whole.
    restart: an existing answer file is replaced. Raises DataError for an answer file of another model, other settings
    or other questions.
    """
    raise NotImplementedError
