"""RefCOCO's list of expressions, read without running what a pickle may hold.

    refs(unc).p, refs(umd).p   a pickled list {ref_id, ann_id, image_id, split, sentences: [{sent_id, sent, ...}], ...}
    refs(unc).json, refs.json  the same as JSON

A pickle can run any code as it is read. These hold lists, dicts, numbers and strings only, so they are read by an
unpickler that knows no class or function at all.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from llava_pat.data.json_files import read_json
from llava_pat.types import DataError

_DAMAGED = (
    pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError,
    RecursionError,
)  # fmt: skip
"""What unpickling raises for bytes that are no pickle; MemoryError: they announce a text without end."""


def read_refs(file: Path) -> list[dict]:
    """The content of a refs file, pickle or JSON by its ending; DataError if it is no list of dicts."""
    refs = _read_pickle(file) if file.suffix == ".p" else read_json(file)
    if not isinstance(refs, list) or not refs or not all(isinstance(ref, dict) for ref in refs):
        raise DataError(f"{file}: a list of expressions is expected, as in RefCOCO's refs(unc).p")
    return refs


class _PlainUnpickler(pickle.Unpickler):
    """Lists, dicts, numbers, strings; whatever names a class or function is refused."""

    def find_class(self, module: str, name: str) -> object:
        raise DataError(f"the pickle asks for {module}.{name}; RefCOCO's files hold plain lists and dicts only")

    def persistent_load(self, pid: object) -> object:
        raise DataError(f"the pickle refers to something outside itself ({pid!r}); RefCOCO's files do not")


def _read_pickle(file: Path) -> object:
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="utf-8", errors="replace").load()  # written by Python 2
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file") from error
    except DataError as error:
        raise DataError(f"{file}: not read, since {error}") from error
    except _DAMAGED as error:
        raise DataError(f"{file}: no whole pickle ({error}); download it again") from error
