"""report.html: what was found, in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from llava_pat.annotation.report.definitions import GROUPS, METRICS, shown
from llava_pat.annotation.report.faults import Fault
from llava_pat.annotation.report.gallery import Said, thumbnail, tile
from llava_pat.annotation.report.measure import Grid
from llava_pat.annotation.report.plots import PLOTS
from llava_pat.annotation.report.source import Source
from llava_pat.annotation.report.survey import Captions, Survey
from llava_pat.annotation.report.words import Bar, bars
from llava_pat.pages.figures import data_uri, drawing, svg_bytes
from llava_pat.pages.frame import figure_html, head, write_whole

_MOST_WORDS = 30
_MOST_FAULTS = 12  # of a unit
_MOST_WHERE = 400  # letters


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    source: Source
    survey: Survey
    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    grid: Grid
    captions: Captions | None


def write_page(path: Path, report: Report) -> Path:
    """Whole or not at all."""
    with drawing():
        parts = [
            *_head(report), *_numbers(report.metrics), *_plots(report.survey), *_words(report.survey),
            *_faults(report), *_gallery(report), *_settings(report),
        ]  # fmt: skip
    return write_whole(path, parts)


def _head(report: Report) -> Iterator[str]:
    css = files("llava_pat.annotation.report").joinpath("page.css").read_text(encoding="utf-8")
    yield from head("Annotation report", css)
    metrics = report.metrics
    facts = [
        f"{metrics['images_measured']:,} images measured",
        f"{metrics['regions']:,} regions",
        f"{metrics['labels']:,} labels",
        "{0} × {0} patches an image ({1})".format(report.grid.side, report.settings["image_aspect_ratio"]),
    ]
    yield f'<p class="facts">{escape(str(report.source.path))} · {escape(" · ".join(facts))}</p>'
    yield '<nav><a href="#numbers">Numbers</a> · <a href="#plots">Plots</a> · <a href="#words">Words</a> · '
    yield '<a href="#faults">What is missing, and why</a> · <a href="#gallery">Images</a></nav>'
    for warning in warnings(report.source, report.survey, metrics):
        yield f'<p class="warning">{escape(warning)}</p>'


def warnings(source: Source, survey: Survey, metrics: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the numbers, a sentence each."""
    found = list(source.notes)
    if source.finished is False:
        done = survey.with_regions + (survey.without_regions or 0)
        found.append(
            f"The run is not finished: its shards so far hold {done:,} of {source.expected:,} images, and nothing "
            "here is about the others."
        )
    if survey.quick:
        found.append(
            f"A quick look: measured are the first {survey.measures.images:,} images with regions, of about "
            f"{survey.with_regions:,}."
        )
    if metrics["images_unknown"] and metrics["images_unknown"] == metrics["images_measured"]:
        found.append("No record has any of these images: names must be spelt alike in records and regions file.")
    if metrics["images_missing"] and metrics["images_missing"] == metrics["images_measured"]:
        found.append(f"None of these images is in {source.image_folder}.")
    return found


def _numbers(metrics: Mapping[str, Any]) -> Iterator[str]:
    yield '<section id="numbers"><h2>Numbers</h2><div class="numbers">'
    for group in GROUPS:
        yield f"<table><caption>{escape(group)}</caption>"
        for metric in METRICS:
            if metric.group == group:
                yield (
                    f'<tr><th scope=row title="{escape(f"{metric.name}: {metric.text}")}">{escape(metric.title)}</th>'
                    f"<td>{shown(metrics[metric.name], metric.unit)}</td></tr>"
                )
        yield "</table>"
    yield '</div><p class="note">Point at a name for its meaning. –: not known, or nothing to measure.</p>'
    yield "<details><summary>What the numbers mean</summary><dl>"
    for metric in METRICS:
        yield f"<dt>{escape(metric.title)} <code>{escape(metric.name)}</code></dt><dd>{escape(metric.text)}</dd>"
    yield "</dl></details></section>"


def _plots(survey: Survey) -> Iterator[str]:
    yield '<section id="plots"><h2>Plots</h2><div class="plots">'
    for plot in PLOTS:
        figure = plot.draw(survey)
        if figure is not None:
            yield figure_html(plot.title, plot.caption, figure, data_uri(svg_bytes(figure), "image/svg+xml"))
    yield "</div></section>"


def _words(survey: Survey) -> Iterator[str]:
    yield '<section id="words"><h2>Words</h2><div class="lists">'
    labels, total = survey.measures.labels, survey.measures.labels.total()
    told = f"The {_MOST_WORDS} most frequent of {len(labels):,}: regions, and their share of all."
    entries = [
        Bar(label, count, count, f"{count:,} · {shown(count / total, 'share')}")
        for label, count in labels.most_common(_MOST_WORDS)
    ]
    yield bars("Labels", told, entries)
    counts = survey.all_nouns
    if counts is not None:
        entries = [
            Bar(noun, counts.covered[noun], count, f"{count:,} · {shown(counts.covered[noun] / count, 'share')}")
            for noun, count in counts.nouns.most_common(_MOST_WORDS)
        ]
        told = "What captions name most often: images; blue, and the percentage: those with a region of it."
        yield bars("Nouns of captions", told, entries)
        entries = [
            Bar(noun, 0, count, f"{count:,} of {counts.nouns[noun]:,}")
            for noun, count in counts.without.most_common(_MOST_WORDS)
        ]
        told = "What captions name most often without a region of it: images, of those whose captions name it."
        yield bars("Nouns without a region", told, entries)
    yield "</div>"
    if counts is None:
        yield '<p class="note">Without records, nothing is known about captions (--records).</p>'
    yield "</section>"


def _faults(report: Report) -> Iterator[str]:
    yield '<section id="faults"><h2>What is missing, and why</h2>'
    ranked = report.survey.faults.ranked()
    if not ranked:
        yield '<p class="note">Nothing was left out.</p></section>'
        return
    yield '<table class="faults"><thead><tr><th>reason</th><th class="count">how many</th><th>the first</th></tr>'
    yield "</thead>"
    for unit in dict.fromkeys(fault.unit for fault in ranked):
        mine = [fault for fault in ranked if fault.unit == unit]
        total = f"{escape(unit)}: {report.survey.faults.count(unit):,}"
        yield f'<tr class="unit"><th scope=rowgroup colspan="3">{total}</th></tr>'
        for fault in mine[:_MOST_FAULTS]:
            yield _fault(fault, report.source.image_folder)
        if len(mine) > _MOST_FAULTS:
            yield f'<tr><th colspan="3">and {len(mine) - _MOST_FAULTS} more reasons: metrics.json</th></tr>'
    yield "</table></section>"


def _fault(fault: Fault, image_folder: Path | None) -> str:
    where = fault.where if len(fault.where) <= _MOST_WHERE else fault.where[: _MOST_WHERE - 1] + "…"
    small = "" if fault.image is None else thumbnail(fault.image, image_folder)
    return (
        f'<tr><th scope=row>{escape(fault.reason)}</th><td class="count">{fault.count:,}</td>'
        f'<td class="first">{small}{escape(where)}</td></tr>'
    )


def _gallery(report: Report) -> Iterator[str]:
    sample = report.survey.sample
    yield '<section id="gallery"><h2>Images</h2>'
    yield (
        f'<p class="note">{len(sample):,} images, drawn by chance (seed {report.settings["seed"]}) from those with '
        "regions. Paler: what stage 1's crop takes away. Point at an outline for its label and score.</p>"
    )
    yield '<div class="gallery">'
    said = _said(report)
    for line in sample:
        yield tile(line, report.grid, report.source.image_folder, said.get(line.regions.image))
    yield "</div></section>"


def _said(report: Report) -> dict[str, Said]:
    captions, sample = report.captions, report.survey.sample
    if captions is None:
        return {}
    found = {}
    for line, nouns in zip(sample, captions.nouns([line.regions.image for line in sample]), strict=True):
        entry = line.regions
        if entry.image in captions.of:
            covered = captions.finder.covered(nouns, [region.label for region in entry.regions])
            found[entry.image] = Said(captions.of[entry.image], tuple(nouns), tuple(covered))
    return found


def _settings(report: Report) -> Iterator[str]:
    yield '<section id="settings"><details><summary>Settings</summary><table class="settings">'
    run = report.source.run or {}
    for key, value in (*report.settings.items(), *run.items(), *report.source.settings.items()):
        yield f"<tr><th scope=row>{escape(str(key))}</th><td><code>{escape(str(value))}</code></td></tr>"
    yield "</table></details></section>\n</main>\n</body>\n</html>"
