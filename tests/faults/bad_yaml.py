"""YAML that is no plain values, and what is said of it. Tags that would run code make a folder called `executed`."""

from __future__ import annotations

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9)
)
"""A billion values, by aliases of aliases."""

BAD_YAML = {
    "!!python/object/apply:os.mkdir [executed]": "could not determine a constructor",
    "a: !!python/object/new:os.mkdir [executed]": "could not determine a constructor",
    "a: !!python/object/apply:os.system [mkdir executed]": "could not determine a constructor",
    "a: !!python/object/apply:subprocess.run [[mkdir, executed]]": "could not determine a constructor",
    "a: !!python/object/apply:builtins.eval [\"__import__('os').mkdir('executed')\"]": "could not determine",
    "a: !!python/name:os.system": "could not determine a constructor",
    "a: !!python/module:os": "could not determine a constructor",
    "a: !!python/tuple [1]": "could not determine a constructor",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [executed]": "could not determine a constructor",
    "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.mkdir [executed]": "could not determine a constructor",
    "a: !own {b: 1}": "could not determine a constructor",
    "a: !!binary aGVsbG8=": "is a bytes",
    "a: 2024-01-01": "is a date; write it in quotes",
    "a: 2024-13-45": "month must be in 1..12",
    "a: !!set {b, c}": "is a set",
    "a: &a [*a]": "more than 100000 values",
    BOMB: "more than 100000 values",
    "seed: 1\nlearning_rate: 2\nseed: 3": "line 3: 'seed' is on line 1 as well",
    "a: {b: 1, b: 2}": "'b' is on line 1 as well",
    "a: [1": "expected ',' or ']'",
    "a: \ud800": "not UTF-8",
    "[" * 5000: "nested too deeply",
    "a: \0": "special characters are not allowed",
    "? [1, 2]\n: b": "unhashable",
    "a: " + "9" * 5000: "Exceeds the limit",
}
