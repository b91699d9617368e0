"""Values that describe a result or a choice cannot be changed; records of something that goes on can."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest

import lora_np

RECORDS = {"History", "Minibatches", "State", "WeightLoadResult", "WeightLoadValidation"}
"""What changes while a training runs or weights are loaded."""


def dataclasses_of_the_package():
    found = set()
    for module in pkgutil.walk_packages(lora_np.__path__, "lora_np."):
        if not module.name.endswith("__main__"):
            values = vars(importlib.import_module(module.name)).values()
            found |= {value for value in values if inspect.isclass(value) and dataclasses.is_dataclass(value)}
    return sorted(
        (one for one in found if one.__module__.startswith("lora_np") and not one.__name__.startswith("_")),
        key=lambda one: one.__qualname__,
    )


@pytest.mark.parametrize("kind", dataclasses_of_the_package(), ids=lambda kind: kind.__name__)
def test_values_cannot_be_assigned_to(kind):
    value = object.__new__(kind)
    name = dataclasses.fields(kind)[0].name
    if kind.__name__ in RECORDS:
        setattr(value, name, None)
    else:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)
