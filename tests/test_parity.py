"""Every row of docs/parity.md is true, and no documented member is missing from it."""

import ast
import inspect
import re
from pathlib import Path

import numpy
import pytest

import lora_np
import lora_np.errors
import lora_np.functions.initializers

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"

# The members of the two documented pages and of what they inherit.
DOCUMENTED = {
    "DyLoRAAdapter": """DyLoRAAdapter ActiveRanks CurrentDeploymentRank IsTraining MaxRank Backward Eval Forward
        MergeToOriginalLayer SetDeploymentRank Train TrainWithNestedDropout UpdateParameters""",
    "MultiLoRAAdapter": """MultiLoRAAdapter CurrentTask NumberOfTasks ParameterCount TaskAdapters AddTask Backward Forward
        GetParameters GetTaskAdapter GetTaskRank MergeTaskToLayer MergeToOriginalLayer RemoveTask ResetState SetCurrentTask
        SetParameters UpdateParameters UpdateParametersFromLayers ForwardWithContext""",
    "LoRAAdapterBase": "BaseLayer LoRALayer IsBaseLayerFrozen Rank Alpha MergeToOriginalLayer",
    "StandardLoRAAdapter": "StandardLoRAAdapter",
    "LoRALayer": """LoRALayer Rank Alpha Scaling ParameterCount Forward Backward UpdateParameters GetParameters
        SetParameters MergeWeights GetMatrixA GetMatrixB ResetState""",
    "DenseLayer": "DenseLayer ComputeAuxiliaryLoss",
    "FullyConnectedLayer": "FullyConnectedLayer",
    "ActivationLayer": "ActivationLayer",
    "Layer": """GetInputShape GetOutputShape Forward Backward UpdateParameters ParameterCount GetParameters SetParameters
        GetParameterGradients ClearGradients GetWeights GetBiases SupportsTraining SetTrainingMode ResetState IsInitialized
        Clone LayerName GetActivationTypes EstimateFlops EstimateActivationMemory GetDiagnostics GetParameterNames
        TryGetParameter SetParameter GetParameterShape NamedParameterCount ValidateWeights LoadWeights Serialize Deserialize
        Dispose SupportsJitCompilation ExportComputationGraph""",
    "WeightLoadValidation": "Matched UnmatchedWeights MissingParameters ShapeMismatches IsComplete IsValid",
    "WeightLoadResult": """Success LoadedCount FailedCount SkippedCount LoadedParameters FailedParameters
        ErrorMessage""",
    "lora_np": "ApplyLoRA MergeAll HasAdapters SelectTask HasMultiLoRAAdapters",
    "Exceptions": """ArgumentException ArgumentNullException ArgumentOutOfRangeException InvalidOperationException
        NotSupportedException""",
}


def rows():
    section = None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("|") and not line.startswith(("|---", "| C# |")):
            yield (section, *(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]))


ROWS = list(rows())


def c_sharp_name(declaration):
    """The member's own name: the last word before its parameters, accessors or end, without a type's arguments."""
    text = declaration.strip("`")
    while "<" in text:
        text = re.sub(r"<[^<>]*>", "", text)
    return re.split(r"[({]", text)[0].split()[-1].rpartition(".")[2]


def examples():
    base = lora_np.DenseLayer(3, 2)
    adapter = lora_np.DyLoRAAdapter(base, 2, [1, 2])
    return {
        "DyLoRAAdapter": adapter,
        "MultiLoRAAdapter": lora_np.MultiLoRAAdapter(base, "first", 1),
        "LoRAAdapterBase": adapter,
        "StandardLoRAAdapter": lora_np.StandardLoRAAdapter(base, 1),
        "LoRALayer": adapter.lora_layer,
        "DenseLayer": base,
        "FullyConnectedLayer": lora_np.FullyConnectedLayer(3, 2),
        "ActivationLayer": lora_np.ActivationLayer(3, lora_np.relu),
        "Layer": base,
        "WeightLoadValidation": base.validate_weights([]),
        "WeightLoadResult": base.load_weights({}),
        "lora_np": lora_np,
        "Exceptions": lora_np.errors,
    }


def signature(text):
    """(name, [(parameter, kind, default)]) of a Python cell such as ``f(a, b=1, *, c=None)``."""
    name, _, parameters = text.partition("(")
    arguments = ast.parse(f"def f({parameters}: pass").body[0].args
    positional = [argument.arg for argument in arguments.args]
    defaults = [inspect.Parameter.empty] * (len(positional) - len(arguments.defaults)) + [
        evaluated(node) for node in arguments.defaults
    ]
    listed = [
        (argument, inspect.Parameter.POSITIONAL_OR_KEYWORD, default)
        for argument, default in zip(positional, defaults, strict=True)
    ]
    listed += [
        (argument.arg, inspect.Parameter.KEYWORD_ONLY, evaluated(node))
        for argument, node in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        listed.append((arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.empty))
    return name, listed


def evaluated(node):
    return eval(compile(ast.Expression(node), "parity", "eval"), {"numpy": numpy, "lora_np": lora_np})


def actual(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(
    ("section", "documented", "kind", "python", "note"), ROWS, ids=[f"{r[0]}-{r[1]}-{r[3]}" for r in ROWS]
)
def test_the_row_is_true(section, documented, kind, python, note):
    owner = examples()[section]
    member = python.strip("`").partition("(")[0]
    if kind == "none":
        assert not python
        assert note
        assert not hasattr(owner, re.sub(r"(?<!^)(?=[A-Z])", "_", c_sharp_name(documented)).lower())
    elif kind == "class":
        assert issubclass(getattr(owner, member), Exception)
        assert getattr(lora_np, member) is getattr(owner, member)
    elif kind == "constructor":
        assert member == section
        assert signature(python.strip("`"))[1] == actual(getattr(lora_np, member))
    elif kind in ("method", "function"):
        assert signature(python.strip("`")) == (member, actual(getattr(owner, member)))
    elif kind == "attribute":
        assert hasattr(owner, member)
        assert not isinstance(getattr(type(owner), member, None), property)
    else:
        assert kind in ("property", "property with setter")
        described = getattr(type(owner), member)
        assert isinstance(described, property)
        assert (described.fset is not None) == (kind == "property with setter")


@pytest.mark.parametrize("section", DOCUMENTED)
def test_no_documented_member_is_missing(section):
    listed = {c_sharp_name(row[1]) for row in ROWS if row[0] == section and row[1] != "(addition)"}
    assert set(DOCUMENTED[section].split()) <= listed


def test_every_section_has_documented_members():
    assert {row[0] for row in ROWS} == set(DOCUMENTED)
