"""Pages that reports write: whatever labels, captions, names and settings hold stays text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from llava_pat.annotation.report import page as annotation_page
from llava_pat.annotation.report.command import main as annotation_report
from llava_pat.evaluation.alignment.report import page as alignment_page
from llava_pat.evaluation.alignment.report import render
from tests.annotation.report import conftest as annotation
from tests.evaluation.alignment.report import conftest as alignment
from tests.faults.markup import MARKUP, Page, beyond
from tests.faults.registry import Outcome, Run, fault_kind

_MEANS = "the page has the elements, scripts and links that it has with plain words; the text is shown"


@fault_kind("HTML in labels, captions, names and settings: annotation report", _MEANS)
def of_annotation(run: Run) -> Iterator[Outcome]:
    annotation_page.PLOTS = ()  # text becomes paths there
    yield from _pages(run, _annotation)


@fault_kind("HTML in labels, words, captions and settings: alignment report", _MEANS)
def of_alignment(run: Run) -> Iterator[Outcome]:
    alignment_page.PLOTS = ()
    yield from _pages(run, _alignment)


def _pages(run: Run, write: Callable[[Path, str], str]) -> Iterator[Outcome]:
    plain = Page(write(run.folder / "plain", "plain"))
    for number, text in enumerate(run.some(MARKUP)):
        folder = run.folder / str(number)
        html = write(folder, text)
        found = beyond(html, plain)
        words = text.strip("\u2028").split()[0]
        if not any(form in html for form in (escape(words), escape(words, quote=False))):
            found.append(f"not shown: {words}")
        yield Outcome(not found, text, "; ".join(found)[:300])
        shutil.rmtree(folder)


def _annotation(folder: Path, text: str) -> str:
    """A run of the annotator whose every text begins with this one."""
    content = annotation.lines()
    for line in content:
        line["id"] = f"{text} {line['id']}"
        for number, region in enumerate(line["regions"]):
            region["label"] = f"{text} {number}"
    content[0]["image"] = f"{text}.png"
    captions = {content[0]["image"]: f"{text} and a dog", "b.png": f"a cat {text}", "c.png": text}
    records = annotation.write_records(folder / "records.json", captions)
    out = annotation.write_run(folder)
    annotation.write_lines(out / "regions" / "part-00000.jsonl", content)
    left_out = out / "left_out" / "part-00001.json"
    left_out.write_text(json.dumps(_prefixed(json.loads(left_out.read_text()), text)))
    settings = json.dumps({"tagger": {"kind": "caption", "engine": "rules"}, "x": text, "y": {"z": [text]}})
    (out / "annotation.yaml").write_text(settings)  # JSON is YAML
    command = [str(out), "--out", str(folder / "report"), *annotation.GRID, "--records", str(records)]
    with redirect_stdout(StringIO()):
        assert annotation_report(command) == 0
    return (folder / "report" / "report.html").read_text(encoding="utf-8")


def _alignment(folder: Path, text: str) -> str:
    """A measuring run of one checkpoint whose every text begins with this one."""
    folder.mkdir()
    alignment.write_run(folder, checkpoints=("run-pat-seed0",))
    metrics = json.loads((folder / "metrics.json").read_text())
    settings = metrics["settings"]
    rows = settings.pop("rows")
    metrics["settings"] = _prefixed(settings, text) | {"rows": _prefixed(rows, text)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    head = folder / "data" / "run-pat-seed0-pictures.json"
    head.write_text(json.dumps(_prefixed(json.loads(head.read_text()), text)))
    arrays = head.with_suffix(".npz")
    with np.load(arrays) as stored:
        content = {name: stored[name] for name in stored.files}
    for name in [name for name in content if name.startswith("nearest_words")]:
        content[name] = np.char.add(f"{text} ", content[name])
    np.savez_compressed(arrays, **content)
    return render(folder).read_text(encoding="utf-8")


def _prefixed(content: Any, text: str) -> Any:
    """Every text in it, keys aside."""
    if isinstance(content, dict):
        return {key: _prefixed(value, text) for key, value in content.items()}
    if isinstance(content, list):
        return [_prefixed(value, text) for value in content]
    return f"{text} {content}" if isinstance(content, str) else content
