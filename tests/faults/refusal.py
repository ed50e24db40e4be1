"""Whether something was refused as it should be: by an error of ours, in a short message that names the file."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.registry import Outcome

_LONGEST = 6000  # characters of a message


def refused(fault: str, call: Callable[[], object], name: str, *marks: Callable[[], bool]) -> Outcome:
    """Survived when `call` raises ValueError (ours are, and safetensors' and transformers' are turned into it) or
    OSError with `name` in its message, and none of `marks` says that something was executed.
    """
    try:
        call()
    except (ValueError, OSError) as error:
        happened = f"{type(error).__name__}: {error}"
        survived = name in str(error) and len(happened) < _LONGEST
    except BaseException as error:  # MemoryError, RecursionError, SystemExit: what a refusal must not be
        happened, survived = f"{type(error).__name__}: {error}", False
    else:
        happened, survived = "it was taken", False
    if any(mark() for mark in marks):
        happened, survived = "it was executed", False
    return Outcome(survived, fault, happened[:500])
