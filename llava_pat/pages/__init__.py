"""What the HTML reports share: how figures look (figures.py), and a page that holds everything in itself (frame.py).

A report is one file: no network, no other file. matplotlib draws the figures; it is an optional extra.
"""

from __future__ import annotations

from importlib.util import find_spec

from llava_pat.types import DataError


def require_matplotlib() -> None:
    """Call it before anything long.

    Raises:
        DataError: matplotlib is not installed; the message says how to get it.
    """
    if find_spec("matplotlib") is None:
        raise DataError("the report's figures need matplotlib, which is not installed: pip install -e '.[report]'")
