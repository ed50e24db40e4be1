"""How every figure looks: fonts, lines, colours that colour-blind readers can tell apart; and figures as bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito's palette (jfly.uni-koeln.de/color), without its yellow, which is too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#6b6b6b"
HEAT = "cividis"
DPI = 200

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # a file name or a word may hold a $
    "svg.fonttype": "path",  # the page looks the same where the font is missing
    "figure.constrained_layout.use": True,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Figures made and written inside have the reports' fonts and lines; the caller's settings stay."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def png_bytes(figure: Figure) -> bytes:
    """The figure at 200 dots per inch. Call inside `drawing`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    figure.set_layout_engine("none")  # it stays as it is, and the next file need not be laid out again
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure. Call inside `drawing`."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "llava-pat"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """kind: image/png, image/jpeg or image/svg+xml."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
