"""What the pages of all reports share."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from llava_pat.pages import require_matplotlib
from llava_pat.pages.figures import data_uri, drawing, png_bytes, svg_bytes
from llava_pat.pages.frame import figure_html, head, write_whole


def test_a_title_is_text_and_the_own_style_comes_last() -> None:
    page = "\n".join(head("A < B", ".own { color: red; }"))
    assert page.count("A &lt; B") == 2 and "A < B" not in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "--ink" in style and style.rstrip().endswith(".own { color: red; }")


def test_a_caption_is_text_and_narrow_figures_are_marked() -> None:
    wide = figure_html('"t"', "<b>", Figure(figsize=(11, 3)), "data:,")
    assert '<img src="data:," alt="&quot;t&quot;: &lt;b&gt;" width="1056" height="288">' in wide
    assert 'class="narrow"' not in wide
    assert 'class="narrow"' in figure_html("t", "c", Figure(figsize=(5.4, 3)), "data:,")


def test_equal_figures_are_the_same_bytes() -> None:
    found = set()
    with drawing():
        for _ in range(2):
            figure = Figure(figsize=(2, 1))
            figure.subplots().plot([0, 1], [1, 0])
            png = png_bytes(figure)
            found.add((png, svg_bytes(figure)))
    assert len(found) == 1
    assert base64.b64decode(data_uri(png, "image/png").removeprefix("data:image/png;base64,")) == png


def test_a_page_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    page = write_whole(tmp_path / "page.html", ["old"])

    def parts():
        yield "new"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(page, parts())
    assert page.read_text() == "old\n" and list(tmp_path.iterdir()) == [page]


def test_without_matplotlib_the_way_out_is_named(monkeypatch) -> None:
    monkeypatch.setattr("llava_pat.pages.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[report\]'"):
        require_matplotlib()
