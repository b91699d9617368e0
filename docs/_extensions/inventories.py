"""Links to the documentation of Python, NumPy and scikit-learn, without a request to their sites during the build.

Sphinx looks up names in inventory files. These are written here, for the names that our docstrings use.
"""

import zlib
from pathlib import Path

ADDRESSES = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "sklearn": "https://scikit-learn.org/stable/",
}

NAMES = {
    "python": {
        ("py:class", "library/functions.html#$"): "bool float int object",
        ("py:function", "library/functions.html#$"): "callable",
        ("py:class", "library/stdtypes.html#$"): "bytes dict list range set str tuple",
        ("py:data", "library/constants.html#$"): "False None True",
        (
            "py:exception",
            "library/exceptions.html#$",
        ): "KeyboardInterrupt TypeError ValueError",
        (
            "std:term",
            "glossary.html#term-$",
        ): "generator iterable iterator mapping sequence",
        ("std:label", "library/stdtypes.html#$"): "bltin-boolean-values",
    },
    "numpy": {
        ("py:class", "reference/generated/$.html#$"): "numpy.dtype numpy.ndarray",
        ("py:function", "reference/generated/$.html#$"): "numpy.asarray numpy.load",
        ("py:class", "reference/random/generator.html#$"): "numpy.random.Generator",
        ("py:class", "reference/random/legacy.html#$"): "numpy.random.RandomState",
        ("std:term", "glossary.html#term-$"): "array_like",
        ("std:label", "reference/$.html"): "arrays.scalars",
    },
    "sklearn": {
        ("py:function", "modules/generated/$.html#$"): "sklearn.datasets.load_digits",
    },
}
"""The names of each project, by role and by place; $ is the name."""


def write(folder: Path) -> dict[str, tuple[str, str]]:
    """Write the inventories, and return them as `intersphinx_mapping` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for project in ADDRESSES:
        (folder / f"{project}.inv").write_bytes(inventory(project))
    return {
        project: (address, str(folder / f"{project}.inv"))
        for project, address in ADDRESSES.items()
    }


def inventory(project: str) -> bytes:
    """An inventory file: https://sphobjinv.readthedocs.io describes the format."""
    lines = [
        f"{name} {role} 1 {place} -\n"
        for (role, place), names in NAMES[project].items()
        for name in names.split()
    ]
    header = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# compressed with zlib\n"
    return header.encode() + zlib.compress("".join(lines).encode())
