"""Bugs to plant, a module for each part of lora_np; `MUTANTS` lists all of them."""

import importlib
import pkgutil

from planted.mutant import Mutant

MUTANTS = [
    mutant
    for module in pkgutil.iter_modules(__path__, "planted.")
    for mutant in getattr(importlib.import_module(module.name), "MUTANTS", ())
]

__all__ = ["MUTANTS", "Mutant"]
