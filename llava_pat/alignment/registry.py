"""Finding an objective by name or import path, and building it from keywords with errors that help."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from typing import Any

from llava_pat.alignment.base import AlignmentObjective

PACKAGE = "llava_pat.alignment"
WIDTHS = ("hidden_size", "vision_width")  # filled in by the model, when the constructor names them


def available() -> tuple[str, ...]:
    """Names of the objectives that ship with the project: the files of this folder that define one."""
    folder = importlib.import_module(PACKAGE).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(folder))
    return tuple(name for name in names if _objectives_of(importlib.import_module(f"{PACKAGE}.{name}")))


def find_objective(name: str) -> type[AlignmentObjective]:
    """The class behind `pat`, `my_package.my_module` or `my_package.my_module:Class`.

    Raises:
        ValueError: no such objective; the message lists what exists.
    """
    path, _, wanted = name.partition(":")
    if "." in path or wanted:
        module = _import_foreign(path)
    elif path in available():
        module = importlib.import_module(f"{PACKAGE}.{path}")
    else:
        raise ValueError(
            f"no alignment objective {name!r}; there are {', '.join(available())}, or give your own as "
            f"my_package.my_module or my_module:Class"
        )
    found = _objectives_of(module)
    if wanted:
        if wanted not in found:
            raise ValueError(f"{path} defines no AlignmentObjective {wanted!r}; it defines {_listed(found)}")
        return found[wanted]
    if len(found) != 1:
        raise ValueError(f"{path} must define one AlignmentObjective, it defines {_listed(found)}; say {path}:Class")
    return next(iter(found.values()))


def accepted_keywords(objective: type[AlignmentObjective]) -> dict[str, Any]:
    """Keyword -> default of an objective's constructor, without the widths.

    Raises:
        TypeError: the constructor breaks the rule (typed keywords with defaults, no *args or **kwargs), or `count` does
            not take (regions, patch_words).
    """
    try:
        inspect.signature(objective.count).bind(objective, None, None)
    except TypeError as error:
        raise TypeError(f"{_named(objective)}: count(self, regions, patch_words) is what is called; {error}") from error
    accepted = {}
    for name, parameter in _parameters(objective).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{_named(objective)} takes {parameter}; name every keyword, so that misspelt ones show")
        if name in WIDTHS:
            continue
        if parameter.default is parameter.empty or parameter.annotation is parameter.empty:
            raise TypeError(f"keyword {name!r} of {_named(objective)} needs a type and a default")
        accepted[name] = parameter.default
    return accepted


def build_objective(name: str, **keywords: Any) -> AlignmentObjective:
    """Build the objective that `name` means.

    Args:
        name: a file of this folder (`none`, `pat`), `my_package.my_module`, or `my_package.my_module:Class`.
        keywords: the constructor's; `hidden_size` and `vision_width` may always be given and reach the constructor
            only when it names them.

    Raises:
        ValueError: unknown objective, unknown keyword, a value of another type, a parameter named `mm_projector`, a
            parameter without a dimension.
        TypeError: the constructor breaks the signature rule.
    """
    objective = find_objective(name)
    accepted = accepted_keywords(objective)
    hints = typing.get_type_hints(objective.__init__)
    unknown = sorted(set(keywords) - set(accepted) - set(WIDTHS))
    if unknown:
        listed = ", ".join(f"{key}={value!r}" for key, value in accepted.items()) or "none"
        raise ValueError(f"alignment objective {name!r} does not know {', '.join(unknown)}; its keywords: {listed}")
    named = _parameters(objective)
    chosen = {key: value for key, value in keywords.items() if key in named}
    for key, value in chosen.items():
        if not _fits(value, hints[key]):
            must = _spelt(hints[key], value)
            raise ValueError(f"{key} of alignment objective {name!r} is {value!r}; it must be {must}")
    for width in WIDTHS:
        if width in named and width not in chosen and named[width].default is inspect.Parameter.empty:
            raise ValueError(f"alignment objective {name!r} needs {width}; pass it to build_objective")
    built = objective(**chosen)
    reserved = [key for key in built.state_dict() if "mm_projector" in key]
    if reserved:
        raise ValueError(
            f"alignment objective {name!r} has {', '.join(reserved)}: mm_projector in a name marks LLaVA's projector "
            f"in checkpoints; rename it"
        )
    scalars = [key for key, parameter in built.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise ValueError(
            f"alignment objective {name!r} has {', '.join(scalars)} without a dimension, which DeepSpeed cannot "
            f"broadcast; give it the shape (1,)"
        )
    return built


def _import_foreign(path: str) -> types.ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name
        if missing is None or not (path == missing or path.startswith(f"{missing}.")):
            raise  # the module is there; something that it imports is not
        raise ValueError(
            f"no module {missing!r} for alignment objective {path!r}; put the folder that holds it on PYTHONPATH "
            f"(objectives of this project: {', '.join(available())})"
        ) from error


def _objectives_of(module: types.ModuleType) -> dict[str, type[AlignmentObjective]]:
    """Public objectives that the module itself defines (an imported base class is not one of them)."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, AlignmentObjective)
        and value is not AlignmentObjective
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def _parameters(objective: type[AlignmentObjective]) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(objective.__init__).parameters)
    del parameters[next(iter(parameters))]  # self
    return parameters


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML or JSON has the annotated type; an int is a float, a bool is neither."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = origin or hint
    if kind is Any:
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def _spelt(hint: Any, value: Any) -> str:
    """The type in words, for an error about `value`."""
    if hint is float and isinstance(value, str):
        return "float (YAML reads 1e-3 as text: write 1.0e-3)"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(names) or "none"


def _named(objective: type) -> str:
    return f"{objective.__module__}:{objective.__qualname__}"
