"""YAML files as plain values: no tag builds an object, no key counts twice, no alias grows without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_MOST = 100_000  # values, those that aliases repeat counted each time
_PLAIN = (str, int, float, bool, type(None))


class BadYaml(ValueError):
    """The file is no YAML of plain values; the message says where, but not in which file."""


class _Loader(yaml.SafeLoader):
    """SafeLoader takes the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise BadYaml(f"line {line}: {key.value!r} is on line {lines[key.value]} as well")
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml_file(path: str | Path) -> Any:
    """The content: texts, numbers, true and false, null, and lists and mappings of them.

    Raises OSError when the file cannot be read, and BadYaml for anything else in it, such as tags and dates.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except BadYaml:
        raise
    except UnicodeDecodeError as error:
        raise BadYaml(f"not UTF-8 text at byte {error.start}") from error
    except RecursionError as error:
        raise BadYaml("nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: the 45th of a month
        raise BadYaml(str(error)) from error
    _refuse_strange(content)
    return content


def _refuse_strange(content: Any) -> None:
    waiting, seen = [content], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > _MOST:
            raise BadYaml(f"more than {_MOST} values; do aliases (*name) repeat lists of aliases?")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif not isinstance(value, _PLAIN):
            raise BadYaml(f"{value} is a {type(value).__name__}; write it in quotes if it is a text")
