"""Load the conformance cases, or export them to files."""

import json
import os
from importlib.resources import files
from typing import Any, TypeAlias

import numpy as np

from .._archive import atomic_file, atomic_folder
from ..io.safetensors import save_safetensors

Case: TypeAlias = dict[str, Any]
"""One case: ``name``, ``kind`` and ``settings``, and ``arrays`` and ``expected``, which map names to nested lists."""

FILES = ("vectors.json", "schema.json")


def load_vectors() -> list[Case]:
    """Load all cases, in the order of the file.

    Returns
    -------
    list of dict
        Described by ``schema.json``.

    Examples
    --------
    >>> from lora_np.conformance import load_vectors
    >>> load_vectors()[0]["name"]
    'dense-tall'
    """
    cases: list[Case] = json.loads(_content("vectors.json"))["cases"]
    return cases


def write_vectors(folder: str | os.PathLike[str]) -> list[str]:
    """Write ``vectors.json``, its JSON Schema ``schema.json``, and the same arrays as ``vectors.safetensors``.

    Parameters
    ----------
    folder : path
        Created if it does not exist; existing files of these names are overwritten.

    Returns
    -------
    list of str
        The names of the files.

    Notes
    -----
    In the safetensors file all tensors are F64, with names such as ``dense-tall/arrays/x`` and ``dense-tall/expected/y``.
    The settings of the cases are only in the JSON file.
    """
    tensors = {
        f"{case['name']}/{part}/{name}": np.array(values, np.float64)
        for case in load_vectors()
        for part in ("arrays", "expected")
        for name, values in case[part].items()
    }
    with atomic_folder(folder) as place:
        save_safetensors(os.path.join(place, "vectors.safetensors"), tensors, {"format": "lora_np conformance"})
        for name in FILES:
            with atomic_file(os.path.join(place, name)) as file:
                file.write(_content(name))
    return [*FILES, "vectors.safetensors"]


def _content(name: str) -> bytes:
    return (files(__package__) / name).read_bytes()
