"""The public names: which there are, that each has a docstring, and that concrete classes are final."""

import importlib
import inspect
import pkgutil
import re
import types

import pytest

import lora_np
import lora_np.io
from lora_np import Activation, Layer, Loss, Optimizer, errors
from lora_np.functions.activations import ACTIVATIONS

NAMES = {
    "Activation",
    "ActivationLayer",
    "Adam",
    "AdamW",
    "AdditiveAdapter",
    "AffineLayer",
    "ArgumentError",
    "ArgumentNullError",
    "ArgumentOutOfRangeError",
    "BertModel",
    "BinaryCrossEntropy",
    "CausalLM",
    "Composite",
    "DenseLayer",
    "DoRAAdapter",
    "Draw",
    "DyLoRAAdapter",
    "Embedding",
    "FormatError",
    "FullyConnectedLayer",
    "FunctionLoss",
    "GPT2Model",
    "GradientError",
    "Huber",
    "InvalidOperationError",
    "Layer",
    "LayerNorm",
    "LlamaModel",
    "LoRAAdapterBase",
    "LoRALayer",
    "Loss",
    "LowRankLayer",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Momentum",
    "MultiLoRAAdapter",
    "NextTokenLoss",
    "NonFiniteError",
    "NotSupportedError",
    "Optimizer",
    "RMSNorm",
    "RankDistribution",
    "Regularization",
    "Run",
    "SGD",
    "Selection",
    "SentenceEncoder",
    "SequenceClassifier",
    "Sequential",
    "SoftmaxCrossEntropy",
    "StandardLoRAAdapter",
    "TaskRanks",
    "TokenClassifier",
    "VeRAAdapter",
    "VeRALayer",
    "WeightLoadResult",
    "WeightLoadValidation",
    "add_task",
    "apply_lora",
    "at_rank",
    "elu",
    "find",
    "fit",
    "gelu",
    "gelu_exact",
    "generate",
    "geometric",
    "has_adapters",
    "has_multi_lora_adapters",
    "identity",
    "leaky_relu",
    "load_layer",
    "load_pretrained",
    "merge_in_place",
    "relu",
    "remove_task",
    "save_layer",
    "select_rank",
    "select_task",
    "selu",
    "sigmoid",
    "softmax",
    "softplus",
    "softsign",
    "swish",
    "tanh",
    "trainable_parameters",
    "without_adapters",
}

ERRORS = {
    "ArgumentError": (ValueError,),
    "ArgumentNullError": (errors.ArgumentError, TypeError, ValueError),
    "ArgumentOutOfRangeError": (errors.ArgumentError, ValueError),
    "InvalidOperationError": (RuntimeError,),
    "NotSupportedError": (NotImplementedError,),
    "FormatError": (errors.ArgumentError, ValueError),
    "NonFiniteError": (ArithmeticError,),
    "GradientError": (AssertionError,),
}


PACKAGES = [lora_np, lora_np.io]


def exported():
    return {name: getattr(lora_np, name) for name in lora_np.__all__}


def submodules(package):
    """The names of the modules in the package's folder."""
    return {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}


def described(name):
    """An exported class or function, and every public member of the class."""
    value = exported()[name]
    if inspect.isclass(value) or inspect.isfunction(value):
        yield name, value
    if inspect.isclass(value):
        for member, attribute in inspect.getmembers(value):
            own = getattr(inspect.unwrap(attribute), "__module__", "") or ""
            if not member.startswith("_") and (isinstance(attribute, property) or own.startswith("lora_np")):
                yield f"{name}.{member}", attribute


def descendants(base):
    for subclass in base.__subclasses__():
        yield subclass
        yield from descendants(subclass)


def shipped(base):
    """The public subclasses inside the package, all layers and adapters imported."""
    for package in (lora_np.layers, lora_np.adapters):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return {
        subclass
        for subclass in descendants(base)
        if subclass.__module__.startswith("lora_np") and not subclass.__name__.startswith("_")
    }


def test_exported_names():
    assert set(exported()) == NAMES


def test_only_submodules_are_public_besides():
    public = {name: value for name, value in vars(lora_np).items() if not name.startswith("_")}
    others = {name for name, value in public.items() if not isinstance(value, types.ModuleType)}
    assert others <= NAMES | {"TYPE_CHECKING"}
    assert set(lora_np._HOMES) == NAMES


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_dir_lists_the_public_names_and_every_submodule(package):
    assert dir(package) == sorted({*package.__all__, *submodules(package)})


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_star_import_brings_the_public_names_and_no_submodule(package):
    names = {}
    exec(f"from {package.__name__} import *", names)
    assert names.keys() - {"__builtins__"} == set(package.__all__)
    assert len(package.__all__) == len(set(package.__all__))


@pytest.mark.parametrize("path", [f"{p.__name__}.{name}" for p in PACKAGES for name in dir(p) if name not in p.__all__])
def test_submodules_are_attributes(path):
    package, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(package), name) is importlib.import_module(path)


@pytest.mark.parametrize("name", lora_np.io.__all__)
def test_functions_of_io_are_those_of_its_modules(name):
    value = getattr(lora_np.io, name)
    assert value.__module__.startswith("lora_np.io.")
    assert value is getattr(importlib.import_module(value.__module__), name)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
@pytest.mark.parametrize("name", ["nothing", "__wrapped__", "_archives", "nothing.npz"])
def test_other_attributes_raise_the_usual_error(package, name):
    with pytest.raises(AttributeError, match=rf"\Amodule '{package.__name__}' has no attribute '{name}'\Z") as raised:
        getattr(package, name)
    assert (raised.value.obj, raised.value.name) == (package, name)


def test_no_export_is_renamed():
    assert [name for name, value in exported().items() if getattr(value, "__name__", name) != name] == []


def test_everything_exported_comes_from_the_package():
    assert [name for name, value in exported().items() if not type(value).__module__.startswith("lora_np")] == [
        name for name, value in exported().items() if inspect.isclass(value) or inspect.isfunction(value)
    ]


def test_every_activation_is_exported():
    assert {value for value in exported().values() if isinstance(value, Activation)} == set(ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_docstring_has_a_summary_line(name):
    undescribed = [path for path, value in described(name) if not (inspect.getdoc(value) or "").strip().partition("\n")[0]]
    assert undescribed == []


@pytest.mark.parametrize("name", sorted(name for name, value in exported().items() if inspect.isfunction(value)))
def test_functions_have_annotated_arguments_and_results(name):
    signature = inspect.signature(exported()[name])
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@pytest.mark.parametrize("base", [Layer, Loss, Optimizer], ids=lambda base: base.__name__)
def test_concrete_classes_are_final_and_the_others_abstract(base):
    classes = shipped(base)
    assert len(classes) >= 4
    assert {c.__name__ for c in classes if getattr(c, "__final__", False) == inspect.isabstract(c)} == set()


@pytest.mark.parametrize("base", [Layer, Loss, Optimizer], ids=lambda base: base.__name__)
def test_nothing_is_derived_from_a_final_class(base):
    finals = [c for c in shipped(base) if "__final__" in vars(c)]
    assert finals
    assert [c for c in finals for d in c.__subclasses__() if d.__module__.startswith("lora_np")] == []


@pytest.mark.parametrize("base", [Layer, Loss, Optimizer], ids=lambda base: base.__name__)
def test_abstract_classes_cannot_be_instantiated(base):
    with pytest.raises(TypeError, match="abstract"):
        base()


@pytest.mark.parametrize(("name", "bases"), ERRORS.items(), ids=ERRORS.keys())
def test_each_error_is_also_the_expected_built_in(name, bases):
    assert issubclass(getattr(lora_np, name), bases)
    assert all(issubclass(getattr(lora_np, name), base) for base in bases)


def test_every_error_is_exported():
    defined = {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, Exception)}
    assert defined == set(ERRORS)


def test_the_version_is_three_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lora_np.__version__)
