"""Every documented default is that of the signature, and what may be omitted is documented so."""

import ast
import importlib
import inspect
import pkgutil
import re
from fractions import Fraction

import pytest

import lora_np

ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*) : (?P<type>.+)$", re.MULTILINE)
DEFAULT = re.compile(r", default (?P<value>.+)$")


def public_callables():
    """The name and value of every function, class and method of the package's public modules, once."""
    modules = [lora_np]
    for found in pkgutil.walk_packages(lora_np.__path__, "lora_np."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            modules.append(importlib.import_module(found.name))
    values = {}
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("_") or not getattr(value, "__module__", "").startswith("lora_np"):
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                values[f"{value.__module__}.{value.__qualname__}"] = value
            if inspect.isclass(value):
                methods = {key: inspect.unwrap(getattr(value, key)) for key in vars(value) if not key.startswith("_")}
                values |= {f"{value.__module__}.{value.__qualname__}.{key}": m for key, m in methods.items() if callable(m)}
    return values


CALLABLES = public_callables()


def documented(value):
    """The documented parameters of a callable: name and type, with the default as the docstring has it."""
    text = inspect.cleandoc(vars(value).get("__doc__") or "") if inspect.isclass(value) else inspect.getdoc(value) or ""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+$|\Z)", text, re.MULTILINE | re.DOTALL)
    for entry in ENTRY.finditer(section[1] if section else ""):
        for name in entry["names"].split(", "):
            yield name.lstrip("*"), entry["type"]


def cases():
    for name, value in CALLABLES.items():
        if re.search(r"\.set_\w+_request$", name):  # made by scikit-learn
            continue
        for parameter, kind in documented(value):
            yield pytest.param(value, parameter, kind, id=f"{name}({parameter})")


def literal(text):
    """A default as written in a docstring: a literal, a fraction such as 1/24, or the name of a function."""
    try:
        return float(Fraction(text)) if "/" in text else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text.strip("`").rpartition(".")[2]


def same(default, written):
    """Whether a default is a written value, or the function, type or activation of that name."""
    return default == written or written in (getattr(default, "__name__", None), getattr(default, "name", None))


@pytest.mark.parametrize(("value", "name", "kind"), list(cases()))
def test_a_documented_default_is_that_of_the_signature(value, name, kind):
    default = inspect.signature(value).parameters[name].default
    written = DEFAULT.search(kind)
    alternatives = re.match(r"\{([^,}]+)", kind)
    if written:  # "beta1, beta2 : float, default 0.9 and 0.999"
        assert any(same(default, literal(text)) for text in written["value"].split(" and ")), kind
    elif default is inspect.Parameter.empty:
        assert not (kind.endswith("optional") and hasattr(lora_np, value.__name__))
    elif alternatives:  # the first is the default
        assert same(default, literal(alternatives[1])), kind
    else:
        assert kind.endswith(("optional", "ignored")) or value.__doc__.count("As in `")


def test_many_defaults_are_compared():
    assert sum(DEFAULT.search(case.values[2]) is not None for case in cases()) > 100
