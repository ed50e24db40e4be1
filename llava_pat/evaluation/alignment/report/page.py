"""report.html and plots/*.png of a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from llava_pat.analysis.vocabulary import Vocabulary
from llava_pat.evaluation.alignment.report import PLOTS as PLOT_FOLDER
from llava_pat.evaluation.alignment.report import REPORT, table
from llava_pat.evaluation.alignment.report.explorer import embedded_json, explorer_data
from llava_pat.evaluation.alignment.report.files import Run, read_run
from llava_pat.evaluation.alignment.report.pictures import decompositions, nearest_words
from llava_pat.evaluation.alignment.report.plots import PLOTS
from llava_pat.evaluation.alignment.report.style import looks
from llava_pat.pages.figures import data_uri, drawing, png_bytes, svg_bytes
from llava_pat.pages.frame import figure_html, head, write_whole

MIN_COVERAGE = 0.25  # training/measure.py's, where the run does not say its own


def write_page(out: Path) -> Path:
    """Writes the page and its plots; returns the page's path. DataError: see files.py."""
    run = read_run(out)
    folder = out / PLOT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()  # a picture that this run does not have must not stay
    with drawing():
        parts = [*_head(run), *_table(run), *_plots(run, folder), *_pictures(run, folder), *_settings(run)]
    return write_whole(out / REPORT, parts)


def _head(run: Run) -> Iterator[str]:
    here = files("llava_pat.evaluation.alignment.report")
    yield from head("Alignment report", here.joinpath("page.css").read_text(encoding="utf-8"))
    settings = run.settings
    facts = [f"{len(run.checkpoints)} checkpoint{'s' * (len(run.checkpoints) > 1)}"]
    for key, text in (("images", "images"), ("labelled_patches", "labelled patches")):
        if key in settings:
            facts.append(f"{settings[key]:,} {text}")
    if "grid" in settings:
        facts.append("{} × {} patches an image".format(*settings["grid"]))
    if "vocabulary_size" in settings:
        facts.append(f"object vocabulary of {settings['vocabulary_size']:,} words")
    if settings.get("word_pieces"):
        facts.append(f"{settings['word_pieces']:,} words of the language model")
    if "date" in settings:
        facts.append(str(settings["date"]))
    yield f'<p class="facts">{escape(" · ".join(facts))}</p>'
    targets = {"table": "Table", "plots": "Plots", "explorer": "Where is a word?", "pictures": "Pictures"}
    links = [f'<a href="#{key}">{text}</a>' for key, text in targets.items() if key != "explorer" or run.pictures]
    yield f"<nav>{' · '.join(links)}</nav>"


def _table(run: Run) -> Iterator[str]:
    yield '<section id="table"><h2>Table</h2>'
    yield f'<div class="wide">{table.table(run.rows)}</div>'
    told = (
        "↑ higher is better, ↓ lower is better; no arrow: neither. <strong>Bold</strong>: the best checkpoint. Shaded: "
        "baselines; two values: the lowest and the highest, where every checkpoint has its own baseline. "
        f"{table.ABOVE}: a baseline that is better than every checkpoint. {table.MISSING}: not measured. "
        "Point at a name for its meaning. No difference here is tested for chance: compare seeds."
    )
    yield f'<p class="note">{told}</p>'
    look = looks(run.rows)
    notes = {look[row.name].title: str(row.about["note"]) for row in run.rows if "note" in row.about}
    if notes:
        items = "".join(f"<li>{escape(name)}: {escape(note)}</li>" for name, note in notes.items())
        yield f'<ul class="note">{items}</ul>'
    if len({row.kind for row in run.rows}) < len(run.rows):
        yield "<details><summary>Every checkpoint's own baselines</summary>"
        yield f'<div class="wide">{table.table(run.rows, apart=True)}</div></details>'
    yield f"<details><summary>What the metrics mean</summary>{table.definitions(run.rows)}"
    yield "<p>Formulas, ranges and pitfalls: docs/analysis.md of the project.</p></details></section>"


def _plots(run: Run, folder: Path) -> Iterator[str]:
    yield '<section id="plots"><h2>Plots</h2>'
    if len({row.kind for row in run.rows}) < len(run.rows):
        told = "Of baselines that every checkpoint has its own of, the metrics show all, the other figures the first."
        yield f'<p class="note">{told}</p>'
    yield '<div class="plots">'
    for plot in PLOTS:
        figure = plot.draw(run.rows)
        if figure is not None:
            (folder / f"{plot.name}.png").write_bytes(png_bytes(figure))
            yield figure_html(plot.title, plot.caption, figure, data_uri(svg_bytes(figure), "image/svg+xml"))
    yield "</div></section>"


def _pictures(run: Run, folder: Path) -> Iterator[str]:
    if not run.pictures:
        yield '<section id="pictures"><h2>Pictures</h2><p class="note">This run kept none (--pictures 0).</p></section>'
        return
    look = looks(run.rows)
    min_coverage = float(run.settings.get("min_coverage", MIN_COVERAGE))
    yield from _explorer(run, min_coverage)
    yield '<section id="pictures"><h2>Pictures</h2>'
    words = (
        "Every patch's nearest of all words of the language model. Framed: labelled patches; blue, solid: the nearest "
        "word of the object vocabulary is right (a hit at 1); orange, dashed: it is not. Patches too small for text "
        "are coloured by their word, and the regions outlined."
    )
    bars = (
        "The framed patch as a sum of words, found by orthogonal matching pursuit, in the order found; bars: the "
        "weights of word vectors of length 1. Blue: a word of its label. Percentage: share of its squared length."
    )
    count = len(next(iter(run.pictures.values())).images)
    for number in range(count):
        shown = {look[name].title: pictures for name, pictures in run.pictures.items()}
        each = {title: pictures.images[number] for title, pictures in shown.items()}
        with_words = {
            title: (each[title], Vocabulary(pictures.words[: pictures.vocabulary_size]))
            for title, pictures in shown.items()
        }
        first = next(iter(each.values()))
        caption = f" Caption: {first.caption}" if first.caption else ""
        opened = " open" if number == 0 else ""
        yield f"<details{opened}><summary>{escape(first.name)}</summary>"
        drawn = nearest_words(with_words, min_coverage)
        yield _picture(folder / f"words-{number}.png", "Nearest words", words + caption, drawn)
        figure = decompositions(each)
        if figure is not None:
            yield _picture(folder / f"sums-{number}.png", "Patches as sums of words", bars, figure)
        yield "</details>"
    yield "</section>"


def _picture(path: Path, title: str, caption: str, figure: Figure) -> str:
    content = png_bytes(figure)
    path.write_bytes(content)
    return figure_html(title, caption, figure, data_uri(content, "image/png"))


def _explorer(run: Run, min_coverage: float) -> Iterator[str]:
    here = files("llava_pat.evaluation.alignment.report")
    data = explorer_data(run, looks(run.rows), min_coverage)
    words = sorted({word for entry in data["words"] for word in entry})
    options = "".join(f'<option value="{escape(word)}"></option>' for word in words)
    yield f"""<section id="explorer"><h2>Where is a word?</h2>
<noscript><p class="note">This part needs JavaScript. The rest of the page does not.</p></noscript>
<div class="controls">
<label>word <input id="word" list="words" autocomplete="off" spellcheck="false" value="{escape(data["start"])}"></label>
<datalist id="words">{options}</datalist>
<label><input type="radio" name="view" value="heat" checked> its cosine with every patch</label>
<label><input type="radio" name="view" value="pieces"> nearest of the language model's words</label>
<label><input type="radio" name="view" value="entries"> nearest of the object vocabulary</label>
<label><input type="checkbox" id="shared" checked> one scale for all images and checkpoints</label>
<label>strength <input type="range" id="strength" min="0" max="100" value="70"></label>
<label>size <input type="range" id="size" min="160" max="1060" value="240"></label>
</div>
<p id="message" role="status"></p>
<div id="thumbs" class="thumbs" role="group" aria-label="images"></div>
<div id="scale"></div>
<div id="panels" class="panels" tabindex="0" aria-label="maps; arrow keys move from patch to patch"></div>
<p class="note">Point at a patch, or go there by the arrow keys: every map tells its cosine and nearest words. Cosines
are rounded to one byte. The {len(words):,} words here{_left_out(run, words)}: {_listed(words)}.</p>
<script type="application/json" id="data">{embedded_json(data)}</script>
<script>
{here.joinpath("explorer.js").read_text(encoding="utf-8")}</script>
</section>"""


def _left_out(run: Run, kept: list[str]) -> str:
    measured = len({word for pictures in run.pictures.values() for word in pictures.words})
    return f" (of {measured:,}; fewer --pictures leave room for more)" if measured > len(kept) else ""


def _listed(words: list[str], most: int = 60) -> str:
    shown = ", ".join(escape(word) for word in words[:most])
    return shown if len(words) <= most else f"{shown} and {len(words) - most:,} more"


def _settings(run: Run) -> Iterator[str]:
    yield '<section id="settings"><details><summary>Settings of this run</summary><table class="settings">'
    for key, value in run.settings.items():
        yield f"<tr><th scope=row>{escape(key)}</th><td><code>{escape(_plain(value))}</code></td></tr>"
    yield "</table></details></section>\n</main>\n</body>\n</html>"


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
