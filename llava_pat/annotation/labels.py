"""Labels as stage 1 wants them: words in running text, in lower case, without an article in front."""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = re.compile(r"^(?:(?:an?|the)\s+)+|^(?:an?|the)$")
_QUALIFIER = re.compile(r"[\s_]*\([^()]*\)")
_EDGES = " \t\n.,;:!?\"'`-"


def clean_label(text: str) -> str:
    """ "A_Dining  Table." -> "dining table". "" where nothing is left.

    Unicode is composed (NFC) and kept, underscores are spaces, articles in front and marks at both ends go.
    """
    words = " ".join(unicodedata.normalize("NFC", text).replace("_", " ").lower().split())
    return _ARTICLES.sub("", words.strip(_EDGES)).strip(_EDGES)


def drop_qualifier(name: str) -> str:
    """ "bow_(weapon)" -> "bow": what LVIS and Open Images add in brackets tells categories apart, nobody says it."""
    return _QUALIFIER.sub("", name)
