"""Two ways to put the code of a mutant in place: into live functions, quickly, or into a module before it is imported."""

import functools
import gc
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code of every function of a module."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes(constant)


def key(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def replace_in_functions(code: CodeType, package: Path) -> bool:
    """Give the functions of an imported module the code of a mutant, and empty the package's caches.

    False if a function cannot have it, for example because it has lost a variable of its closure.
    """
    found = list(codes(code))
    names = [key(each) for each in found]
    new = {key(each): each for each in found if names.count(key(each)) == 1}  # two lambdas of one line are left alone
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == code.co_filename:
            try:
                thing.__code__ = new.get(key(thing.__code__), thing.__code__)
            except ValueError:
                return False
        elif isinstance(thing, functools._lru_cache_wrapper) and thing.__module__.startswith(package.name):
            thing.cache_clear()
    return True


class Planter(importlib.abc.MetaPathFinder):
    """Imports one module with the code of a mutant."""

    def __init__(self, code: CodeType, package: Path) -> None:
        parts = Path(code.co_filename).relative_to(package.parent).with_suffix("").parts
        self.name, self.code = ".".join(parts).removesuffix(".__init__"), code

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader.get_code = lambda _: self.code
        return spec

    def install(self) -> None:
        assert self.name not in sys.modules, f"{self.name} is imported already"
        sys.meta_path.insert(0, self)
