"""Image files and their names."""

from __future__ import annotations

import io
import json
import os
import random
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from llava_pat.data.geometry import CenterCrop, Pad
from llava_pat.data.images import UNREADABLE, check_image, open_image
from llava_pat.data.records import load_records
from llava_pat.evaluation.questions import check_images, read_questions
from llava_pat.types import DataError
from tests.faults.accounts import check_and_account
from tests.faults.examples import generated
from tests.faults.harmful import changed_bytes
from tests.faults.pictures import BOMBS, no_files
from tests.faults.refusal import refused
from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.small_data import small_data

_ROOM = 2 << 30  # bytes more than the process has: no bomb may go off
_NUMBERS = {"size": 28, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")


def _little_room() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM,) * 2)


@fault_kind("bombs, programs and other files that are no images", "refused by name, in 2 GB; nothing is run")
def bombs(run: Run) -> Iterator[Outcome]:
    _little_room()
    mark = run.folder / "executed"
    for program in ("gs", "convert", "inkscape", "rsvg-convert"):  # what a reader of pictures might call
        (run.folder / program).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (run.folder / program).chmod(0o755)
    os.environ["PATH"] = f"{run.folder}{os.pathsep}{os.environ['PATH']}"
    for extension in run.some(("png", "jpg", "eps", "svg")):
        for name, content in BOMBS.items():
            file = run.folder / f"picture.{extension}"
            file.write_bytes(content)
            yield refused(f"{name} as .{extension}", partial(_pixels, file), file.name, mark.exists)


def _pixels(file: Path) -> None:
    """As training does, for either geometry. What is read at last must be refused by the one that grows it."""
    check_image(file, "decode")
    for geometry in (CenterCrop(**_NUMBERS), Pad(**_NUMBERS)):
        try:
            with open_image(file) as image:
                geometry.pixels(image)
        except UNREADABLE as error:
            raise DataError(f"{file}: {error}") from error


@fault_kind("image names that lead out of the folder, and what is no file", "left out by record; nothing is read")
def names(run: Run) -> Iterator[Outcome]:
    data = small_data(run.folder)
    for place in ("out.png", "loop.png", "pipe.png"):
        (data.images / place).unlink()
    cases = no_files(data.images, run.folder / "secret.png")
    file = run.folder / "records.json"
    for case in run.some(sorted(cases)):
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a ring"}]
        file.write_text(json.dumps([{"id": "r", "image": cases[case], "conversations": turns}]))
        yield _left_out(case, file, data)
        if case != "a file in a folder that is a link out":  # benchmarks' folders are often links
            asked = run.folder / "questions.jsonl"
            asked.write_text(json.dumps({"question_id": 1, "image": cases[case], "text": "What?"}))
            yield refused(f"{case}, in a benchmark", partial(_ask, asked, data.images), run.folder.name)


def _ask(asked: Path, images: Path) -> None:
    """As a benchmark does before a model answers, and while it does."""
    questions = read_questions(asked, images)
    check_images(questions)
    with open_image(questions[0].images[0]) as image:
        Pad(**_NUMBERS).pixels(image)


def _left_out(case: str, file: Path, data) -> Outcome:
    try:
        records = load_records(file, "skip", broken := [])
        kept = check_and_account(records, data, "skip")[0] if records else 0
    except Exception as error:
        return Outcome(False, case, f"{type(error).__name__}: {error}"[:500])
    return Outcome(kept == 0 and (not records or not broken), case, f"{kept} kept")


@fault_kind("images cut off or with bytes changed", "refused by name, or finite pixels")
def damaged(run: Run) -> Iterator[Outcome]:
    geometry, whole = Pad(**_NUMBERS), {}
    for kind in _FORMATS:
        buffer = io.BytesIO()
        Image.effect_noise((40, 30), 90).convert("RGB").save(buffer, kind)
        whole[kind] = buffer.getvalue()

    def one(rng: random.Random) -> Iterator[Outcome]:
        kind = rng.choice(_FORMATS)
        file = run.folder / f"a.{kind.lower()}"
        file.write_bytes(changed_bytes(rng, whole[kind]))
        try:
            check_image(file, rng.choice(["verify", "decode"]))
            with open_image(file) as image:
                pixels = geometry.pixels(image)
        except DataError as error:
            yield Outcome(str(file) in str(error), kind, str(error)[:300])
        except UNREADABLE:  # "verify" looks less closely; the data set names the file
            yield Outcome(True, kind)
        else:
            yield Outcome(pixels.shape == (3, 28, 28) and bool(torch.isfinite(pixels).all()), kind, "odd pixels")

    yield from generated(run, 4000, one)
