"""Settings of a wrong kind in a model folder: transformers stumbles over them somewhere; here they get a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError

_STUMBLES = (
    AttributeError, TypeError, LookupError, ArithmeticError, AssertionError, RecursionError, StrictDataclassError,
)  # fmt: skip


@contextmanager
def unusable_named(where: str) -> Iterator[None]:
    """What transformers raises for a setting that it did not expect becomes a ValueError that names the folder."""
    try:
        yield
    except _STUMBLES as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{where}: its settings (config.json and the like) cannot be used: {type(error).__name__}: {reason}"
        ) from error
