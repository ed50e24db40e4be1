"""All questions of a benchmark, answered into a file: sharded over ranks, resumable, with provenance beside it.

One process writes the answer file itself; several write ANSWERS.rank0, ANSWERS.rank1, ..., which rank 0 puts together.
Whatever a killed run left of these, under however many ranks, is kept.
"""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed
from tqdm import tqdm

from llava_pat.evaluation.answers import AnswerFile, answer_line, read_answers, refuse_foreign
from llava_pat.evaluation.model import Answerer
from llava_pat.evaluation.provenance import check_provenance, provenance_file, write_provenance
from llava_pat.evaluation.questions import Question, check_images, check_unique, chunk, questions_hash

logger = logging.getLogger(__name__)

_PATIENCE = datetime.timedelta(days=7)  # one rank may have much longer answers to write than another


def start_ranks() -> tuple[int, int]:
    """(rank, world_size), by torchrun's environment; (0, 1) without it. On a GPU each local rank takes its own.

    Ranks only wait for each other, so gloo does on a GPU too.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return 0, 1
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.distributed.get_rank(), world_size


def end_ranks() -> None:
    """After the last `answer_questions` of a process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
    or other questions, and for the same question twice; FileNotFoundError for images that are not there.
    """
    file, questions = Path(file), check_unique(questions, unique_ids=False)
    started = time.monotonic()
    check_images(questions)
    if rank == 0:
        asked = {"count": len(questions), "sha256": questions_hash(questions)}
        provenance = answerer.fingerprint | {"max_new_tokens": max_new_tokens, "questions": asked}
        provenance |= {"batch_size": batch_size, "world_size": world_size}
        _prepare(file, questions, provenance, restart)
    _wait(world_size)
    held = read_answers(file)
    todo = [question for question in questions if question.key not in held]
    _wait(world_size)  # nobody appends before everybody has read
    mine = chunk(todo, world_size, rank)
    with (
        AnswerFile(file if world_size == 1 else _rank_file(file, rank)) as out,
        tqdm(total=len(mine), unit=" questions", desc=file.name, disable=not progress or rank > 0) as bar,
    ):

        def done(asked: list[Question], texts: list[str]) -> None:
            pairs = zip(asked, texts, strict=True)
            out.append(answer_line(question, text, answerer.name) for question, text in pairs)
            bar.update(len(asked))

        answerer.answer(mine, max_new_tokens, batch_size, done)
        if world_size == 1:
            out.sort([question.key for question in questions])
    _wait(world_size)
    if rank == 0:
        if world_size > 1:
            _gather(file, questions)
        seconds = time.monotonic() - started
        logger.info(
            "%d questions answered in %.1f s (%.1f a second), %d were answered before: %s",
            len(todo), seconds, len(todo) / seconds, len(held), file,
        )  # fmt: skip
    _wait(world_size)


def _prepare(file: Path, questions: Sequence[Question], provenance: dict, restart: bool) -> None:
    """The file as an earlier run left it, with all that its ranks left; or an empty one."""
    if restart:
        for old in (file, provenance_file(file), *_rank_files(file)):
            old.unlink(missing_ok=True)
    _gather(file, questions, check=provenance)
    write_provenance(file, provenance)


def _gather(file: Path, questions: Sequence[Question], check: dict | None = None) -> None:
    """What ranks wrote comes into the file, in the questions' order. Stopped anywhere, it can be done again."""
    parts = {part: read_answers(part, repair=True) for part in _rank_files(file)}
    keys = [question.key for question in questions]
    with AnswerFile(file) as out:
        if check is not None:
            check_provenance(file, check, answered=len(out.answers) + sum(map(len, parts.values())))
        for part, lines in parts.items():
            refuse_foreign(part, lines, keys)
            out.append(line for key, line in lines.items() if key not in out.answers)
        out.sort(keys)
    for part in parts:
        part.unlink()


def _rank_file(file: Path, rank: int) -> Path:
    return file.with_name(f"{file.name}.rank{rank}")


def _rank_files(file: Path) -> list[Path]:
    return sorted(part for part in file.parent.glob("*") if part.name.startswith(f"{file.name}.rank"))


def _wait(world_size: int) -> None:
    if world_size > 1:
        torch.distributed.barrier()
