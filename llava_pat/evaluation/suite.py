"""`run_benchmarks.py CKPT [benchmark ...]`: all questions of all benchmarks, their scores, one report.

Everything that can be missing is looked for before the model is loaded.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_pat.evaluation.answers import read_answers
from llava_pat.evaluation.benchmark import Benchmark, describe, find_benchmark, registry
from llava_pat.evaluation.judge import Judge
from llava_pat.evaluation.model import DTYPES, Answerer, choose_template
from llava_pat.evaluation.provenance import provenance_file
from llava_pat.evaluation.questions import Question, check_images
from llava_pat.evaluation.report import FAILED, MISSING, SCORED, SERVER, Report, Result
from llava_pat.evaluation.run import answer_questions, end_ranks, start_ranks
from llava_pat.models.llava_config import read_config
from llava_pat.models.llava_names import model_name
from llava_pat.models.source import HF_RECORD
from llava_pat.types import DataError

logger = logging.getLogger(__name__)

PLAYGROUND = "playground"
EVERYTHING = "all"
DATA_ROOT = Path("playground/data/eval")

DESCRIPTION = """\
Answers and scores benchmarks with a checkpoint of any layout: LLaVA's, llava-hf's, stage 1's projector or LoRA's
adapters (these two with --base, unless their config.json names a base that is there).

Answers, results.json and results.md (a table with published rows) go to --out. A run that was stopped goes on where it
was; answers that are there already are scored only. Nothing is left out in silence: a benchmark whose files are missing
is listed with what is missing and where it comes from, and the exit status is 2, before anything is loaded."""


@dataclass(frozen=True)
class Planned:
    """A benchmark that can be asked."""

    benchmark: Benchmark
    total: int
    """How many questions it has."""
    asked: list[Question]
    limit: int | None
    """--limit, if it leaves some out."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        "run_benchmarks.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("checkpoint", metavar="CKPT", help="folder or hub id")
    add("benchmarks", metavar="benchmark", nargs="*", help="names, or what several names begin with up to an "
        "underscore (refcoco, playground), or 'all'. Default: the playground's for a playground checkpoint, all others "
        "for another one")  # fmt: skip
    add("--list", action="store_true", help="print the benchmarks and whether their files are there; CKPT may be '-'")
    add("--data_root", type=Path, default=DATA_ROOT, help=f"folder of the official files (default: {DATA_ROOT})")
    add("--out", type=Path, help="default: CKPT/eval, or results/NAME for a hub id")
    add("--base", "--model-base", help="language model of a stage-1 or LoRA checkpoint")
    add("--vision_tower", help="in place of the one that config.json names")
    add("--conv-mode", dest="conv_mode", help="template (default: the run's own; without one v1, as LLaVA's "
        "evaluation scripts, unless the name says llama-2, mistral or mpt)")  # fmt: skip
    add("--batch_size", type=int, help="questions at a time; answers do not depend on it, up to ties that rounding "
        "decides (default: 8; 32 for a playground checkpoint)")  # fmt: skip
    add("--dtype", choices=["auto", *DTYPES], default="auto", help="auto (default): fp16 on a GPU, fp32 on a CPU")
    add("--limit", type=int, help="at most N questions a benchmark, evenly spaced over it; results are marked partial")
    add("--skip_missing", action="store_true", help="go on without benchmarks whose files are missing (still listed)")
    add("--all_rounds", action="store_true", help="MMBench: ask once for every rotation of the options")
    add("--judge_url", help="server with OpenAI's chat interface that judges MM-Vet's and LLaVA-Bench's answers, "
        "such as http://127.0.0.1:8000/v1; the key is read from OPENAI_API_KEY. Default: files for a judge, "
        "nothing is sent")  # fmt: skip
    add("--judge_model", help="the judge's name there (the originals: gpt-4-0613, gpt-4-0314)")
    add("--restart", action="store_true", help="throw earlier answers away")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 if a benchmark failed; 2 for a wrong command line or missing files."""
    arguments = parser().parse_args(argv)
    rank, world_size = start_ranks()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s")
    try:
        if arguments.list:
            print(listing(arguments.data_root))
            return 0
        if arguments.limit is not None and arguments.limit < 1:
            raise DataError(f"--limit {arguments.limit}: at least 1")
        if (arguments.judge_url is None) != (arguments.judge_model is None):
            raise DataError("--judge_url and --judge_model belong together: name both, or none")
        status = run(arguments, rank, world_size)
        end_ranks()
        return status
    except (DataError, FileNotFoundError, BlockingIOError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def run(arguments: argparse.Namespace, rank: int, world_size: int) -> int:
    """Plan, answer, score, report; returns the exit status."""
    root: Path = arguments.data_root
    playground = is_playground(arguments.checkpoint)
    names = select(arguments.benchmarks, playground)
    planned, missing = plan([_set_up(name, arguments) for name in names], root, arguments.limit)
    batch_size = (32 if playground else 8) if arguments.batch_size is None else arguments.batch_size
    if missing and rank == 0:
        print(f"{len(missing)} of {len(names)} benchmarks cannot be run:", file=sys.stderr)
        for name, lines in missing.items():
            print("\n".join([f"  {name}", *(f"    {line}" for line in lines)]), file=sys.stderr, flush=True)
    if missing and (not planned or not arguments.skip_missing):
        raise DataError(
            f"files are missing under {root} (above). Get them, or name the benchmarks to run, or leave these out with "
            "--skip_missing"
        )
    out = output_folder(arguments.checkpoint) if arguments.out is None else arguments.out
    started = time.perf_counter()
    answerer = Answerer.from_folder(
        arguments.checkpoint,
        base=arguments.base,
        vision_tower=arguments.vision_tower,
        template=_asked_in(arguments.checkpoint, arguments.conv_mode),
        dtype=arguments.dtype,
    )
    logger.info("%s loaded in %.0f s", arguments.checkpoint, time.perf_counter() - started)
    if answerer.template.name == "plain":
        logger.warning("the template plain (stage 1) leaves the question out: only captions mean anything with it")
    report = None
    if rank == 0:
        report = Report(out, str(arguments.checkpoint), answerer.name, identity(answerer.fingerprint))
        if report.replaced is not None:
            logger.info("%s: results of other weights or settings; kept as %s", report.file, report.replaced)
        for name, lines in missing.items():
            report.add(name, Result(registry()[name].title, MISSING, needs=lines))
    failed = 0
    for number, item in enumerate(planned, start=1):
        logger.info("[%d/%d] %s: %s", number, len(planned), item.benchmark.name, _size(item))
        result = ask(item, answerer, root, out, batch_size, arguments.restart, rank, world_size)
        if report is None or result is None:
            continue
        report.add(item.benchmark.name, result)
        failed += result.status == FAILED
        logger.info("  %s", _outcome(result))
    if report is not None:
        print(f"\n{report.markdown()}\nwritten: {report.file}, {report.table}", flush=True)
    return 1 if failed else 0


def ask(
    item: Planned,
    answerer: Answerer,
    root: Path,
    out: Path,
    batch_size: int,
    restart: bool,
    rank: int,
    world_size: int,
) -> Result | None:
    """Answers what is not answered yet; rank 0 scores and returns the result, the others None."""
    benchmark = item.benchmark
    part = "" if item.limit is None else f"-limit{item.limit}"
    file = out / "answers" / f"{benchmark.name}{part}.jsonl"
    before = len(read_answers(file)) if rank == 0 and file.exists() and not restart else 0
    started = time.perf_counter()
    answer_questions(
        answerer,
        item.asked,
        file,
        max_new_tokens=benchmark.max_new_tokens,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        restart=restart,
    )
    if rank != 0:
        return None
    answered = time.perf_counter()
    lines = read_answers(file)
    result = Result(
        benchmark.title,
        SCORED,
        questions=item.total,
        answered=len(lines),
        limit=item.limit,
        answer_seconds=round(answered - started, 2),
        answered_in_this_run=len(lines) - before,
        answers=str(file),
        provenance=json.loads(provenance_file(file).read_text(encoding="utf-8")),
    )
    try:
        scores = benchmark.score(root, {key: line["text"] for key, line in lines.items()}, out / "submissions")
    except DataError as error:  # the answers are there, and the other benchmarks still to come
        result.status, result.error = FAILED, str(error)
        return result
    result.score_seconds = round(time.perf_counter() - answered, 2)
    result.metrics, result.notes = dict(scores.metrics), list(scores.notes)
    result.submission = None if scores.submission is None else str(scores.submission)
    result.status = SCORED if scores.metrics else SERVER
    return result


def select(asked: Sequence[str], playground: bool) -> list[str]:
    """Names for what was asked, in the order asked, none twice.

    Raises:
        DataError: a name that stands for nothing; the message lists all there are.
    """
    known = list(registry())
    ours = [name for name in known if name.startswith(f"{PLAYGROUND}_")]
    if not asked:
        return ours if playground else [name for name in known if name not in ours]
    chosen: list[str] = []
    for name in asked:
        fitting = [name] if name in known else [other for other in known if other.startswith(f"{name}_")]
        fitting = known if name == EVERYTHING else fitting
        if not fitting:
            raise DataError(f"no benchmark {name!r}; there are: {', '.join(known)}; and '{EVERYTHING}'")
        chosen += fitting
    return list(dict.fromkeys(chosen))


def plan(
    benchmarks: Sequence[Benchmark], root: Path, limit: int | None
) -> tuple[list[Planned], dict[str, list[str]]]:
    """What can be asked, and for the others what is missing, a line each."""
    planned, missing = [], {}
    for benchmark in benchmarks:
        needed = benchmark.missing(root)
        if needed:
            missing[benchmark.name] = [describe(one, root / benchmark.folder) for one in needed]
            continue
        questions = benchmark.questions(root)
        asked = spread(questions, limit)
        try:
            check_images(asked)
        except FileNotFoundError as error:
            missing[benchmark.name] = str(error).split("\n")
            continue
        if len(asked) < len(questions):
            planned.append(Planned(only(benchmark, asked), len(questions), asked, limit))
        else:
            planned.append(Planned(benchmark, len(questions), asked, None))
    return planned, missing


def only(benchmark: Benchmark, asked: Sequence[Question]) -> Benchmark:
    """The benchmark as if it had these questions alone: those left out must not count as wrong answers."""
    kind = type(benchmark)
    part = type(kind.__name__, (kind,), {"questions": lambda self, root: list(asked)})()
    part.judge, part.all_rounds = benchmark.judge, benchmark.all_rounds
    return part


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` of them, evenly spaced from the first on; the same ones every time."""
    if limit is None or len(questions) <= limit:
        return list(questions)
    return [questions[i * len(questions) // limit] for i in range(limit)]


def is_playground(checkpoint: str) -> bool:
    """Whether a checkpoint was made with the playground's tower."""
    config = read_config(checkpoint)
    settings = config.get(HF_RECORD, {}).get("settings", {}) | config
    return "playground/models" in str(settings.get("mm_vision_tower"))


def template_of(checkpoint: str, conv_mode: str | None) -> str:
    """The template to ask in: --conv-mode, the run's own, or what LLaVA's scripts/v1_5/eval/*.sh name.

    By a folder's name alone LLaVA's code would take llava_v1 ("a curious human") for LLaVA-1.5, but all of those
    scripts, and so its published figures, say vicuna_v1 ("a curious user"), which it was trained with.
    """
    template, _ = choose_template(checkpoint, conv_mode)
    if conv_mode is None and template == "llava_v1" and not (Path(checkpoint) / "config.yaml").is_file():
        return "v1"
    return template


def _asked_in(checkpoint: str, conv_mode: str | None) -> str | None:
    """None where the answerer chooses the same by itself: provenance then says why."""
    template = template_of(checkpoint, conv_mode)
    return conv_mode if template == choose_template(checkpoint, conv_mode)[0] else template


def output_folder(checkpoint: str) -> Path:
    """CKPT/eval for a folder, results/NAME for a hub id."""
    return Path(checkpoint) / "eval" if Path(checkpoint).is_dir() else Path("results") / model_name(checkpoint)


def identity(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What figures depend on: a fingerprint without places and versions."""
    return {
        "checkpoint": fingerprint["checkpoint"]["sha256"],
        "parts": {name: part["sha256"] for name, part in fingerprint["parts"].items()},
        **{name: fingerprint[name] for name in ("template", "image_aspect_ratio", "dtype", "decoding")},
    }


def listing(root: Path) -> str:
    """All benchmarks, a line each, and what is missing."""
    lines = []
    for name, kind in registry().items():
        missing = kind().missing(root)
        lines.append(f"{name:28} {kind.title:40} {'missing' if missing else 'ready'}")
        lines += [f"    {describe(needed, root / kind.folder)}" for needed in missing]
    return "\n".join(lines)


def _set_up(name: str, arguments: argparse.Namespace) -> Benchmark:
    benchmark = find_benchmark(name)
    benchmark.all_rounds = arguments.all_rounds
    if arguments.judge_url is not None:
        benchmark.judge = Judge(arguments.judge_url, arguments.judge_model)
    return benchmark


def _size(item: Planned) -> str:
    if item.limit is None:
        return f"{item.total} questions"
    return f"{len(item.asked)} of its {item.total} questions, evenly spaced (--limit {item.limit})"


def _outcome(result: Result) -> str:
    if result.status != SCORED:
        return f"{result.status}: {result.error or result.submission}"
    metric, value = next(iter(result.metrics.items()))
    return f"{metric} {value:.1f} ({result.answer_seconds:.0f} s for {result.answered_in_this_run} answers)"
