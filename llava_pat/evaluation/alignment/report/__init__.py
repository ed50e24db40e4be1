"""The alignment report: one HTML page and PNG plots from what a measuring run left (files.py has the layout).

    python -m llava_pat.evaluation.alignment.report OUT      # draws the page of a finished run again

The page holds everything in itself: no network, no other file. matplotlib draws the figures.
"""

from __future__ import annotations

from pathlib import Path

from llava_pat.pages import require_matplotlib

REPORT = "report.html"
PLOTS = "plots"


def render(out: Path) -> Path:
    """Writes `out`/report.html and `out`/plots/*.png from `out`/metrics.json and `out`/data.

    Returns:
        The path of the page.

    Raises:
        DataError: a file of the run is missing, or not what files.py describes.
        ValueError: matplotlib is not installed.
    """
    require_matplotlib()
    from llava_pat.evaluation.alignment.report.page import write_page  # matplotlib takes a second to import

    return write_page(Path(out))
