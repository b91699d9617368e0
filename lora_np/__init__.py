"""lora_np: layers, LoRA, DyLoRA and MultiLoRA from scratch in NumPy, with gradients derived by hand and checked."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import adapters as adapters
    from . import base as base
    from . import cli as cli
    from . import conformance as conformance
    from . import data as data
    from . import demo as demo
    from . import distributed as distributed
    from . import errors as errors
    from . import exercises as exercises
    from . import factors as factors
    from . import functions as functions
    from . import graph as graph
    from . import io as io
    from . import kernels as kernels
    from . import layers as layers
    from . import models as models
    from . import plot as plot
    from . import run as run
    from . import sequences as sequences
    from . import sklearn as sklearn
    from . import surgery as surgery
    from . import terminal as terminal
    from . import testing as testing
    from . import text as text
    from . import training as training
    from .adapters import (
        AdditiveAdapter,
        DoRAAdapter,
        DyLoRAAdapter,
        LoRAAdapterBase,
        MultiLoRAAdapter,
        Selection,
        StandardLoRAAdapter,
        VeRAAdapter,
        VeRALayer,
    )
    from .adapters.dylora import at_rank
    from .adapters.rank_distribution import RankDistribution, geometric
    from .adapters.task_ranks import TaskRanks
    from .base.weight_loadable import WeightLoadResult, WeightLoadValidation
    from .errors import (
        ArgumentError,
        ArgumentNullError,
        ArgumentOutOfRangeError,
        FormatError,
        GradientError,
        InvalidOperationError,
        NonFiniteError,
        NotSupportedError,
    )
    from .functions.activations import (
        Activation,
        elu,
        gelu,
        gelu_exact,
        identity,
        leaky_relu,
        relu,
        selu,
        sigmoid,
        softmax,
        softplus,
        softsign,
        swish,
        tanh,
    )
    from .functions.losses import (
        BinaryCrossEntropy,
        FunctionLoss,
        Huber,
        Loss,
        MeanAbsoluteError,
        MeanSquaredError,
        SoftmaxCrossEntropy,
    )
    from .functions.regularization import Regularization
    from .io.npz import load_layer, save_layer
    from .io.pretrained import load_pretrained
    from .layers import (
        ActivationLayer,
        AffineLayer,
        Composite,
        DenseLayer,
        Embedding,
        FullyConnectedLayer,
        Layer,
        LayerNorm,
        LoRALayer,
        LowRankLayer,
        RMSNorm,
        Sequential,
    )
    from .models.adapting import apply_lora, merge_in_place, without_adapters
    from .models.bert import BertModel
    from .models.causal import CausalLM
    from .models.finding import find, has_adapters, has_multi_lora_adapters, select_rank, select_task
    from .models.generation import generate
    from .models.gpt2 import GPT2Model
    from .models.heads import SentenceEncoder, SequenceClassifier, TokenClassifier
    from .models.llama import LlamaModel
    from .models.next_token import NextTokenLoss
    from .models.parameter_table import trainable_parameters
    from .models.tasks import add_task, remove_task
    from .run import Draw, Run
    from .training.fit import fit
    from .training.optimizers import SGD, Adam, AdamW, Momentum, Optimizer
else:  # a type checker that saw __getattr__ would accept any attribute

    def __getattr__(name):
        """Import a submodule, or the module of a name, on first use (PEP 562)."""
        if name in _HOMES:
            value = globals()[name] = getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)
            return value
        if name in _SUBMODULES:
            return _import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
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
]

_HOMES = {
    name: module
    for module, names in {
        "adapters": "AdditiveAdapter DoRAAdapter DyLoRAAdapter LoRAAdapterBase MultiLoRAAdapter Selection "
        "StandardLoRAAdapter VeRAAdapter VeRALayer",
        "adapters.dylora": "at_rank",
        "adapters.rank_distribution": "RankDistribution geometric",
        "adapters.task_ranks": "TaskRanks",
        "base.weight_loadable": "WeightLoadResult WeightLoadValidation",
        "errors": "ArgumentError ArgumentNullError ArgumentOutOfRangeError FormatError GradientError "
        "InvalidOperationError NonFiniteError NotSupportedError",
        "functions.activations": "Activation elu gelu gelu_exact identity leaky_relu relu selu sigmoid softmax "
        "softplus softsign swish tanh",
        "functions.losses": "BinaryCrossEntropy FunctionLoss Huber Loss MeanAbsoluteError MeanSquaredError "
        "SoftmaxCrossEntropy",
        "functions.regularization": "Regularization",
        "io.npz": "load_layer save_layer",
        "io.pretrained": "load_pretrained",
        "layers": "ActivationLayer AffineLayer Composite DenseLayer Embedding FullyConnectedLayer Layer LayerNorm "
        "LoRALayer LowRankLayer RMSNorm Sequential",
        "models.adapting": "apply_lora merge_in_place without_adapters",
        "models.bert": "BertModel",
        "models.causal": "CausalLM",
        "models.finding": "find has_adapters has_multi_lora_adapters select_rank select_task",
        "models.generation": "generate",
        "models.gpt2": "GPT2Model",
        "models.heads": "SentenceEncoder SequenceClassifier TokenClassifier",
        "models.llama": "LlamaModel",
        "models.next_token": "NextTokenLoss",
        "models.parameter_table": "trainable_parameters",
        "models.tasks": "add_task remove_task",
        "run": "Draw Run",
        "training.fit": "fit",
        "training.optimizers": "Adam AdamW Momentum Optimizer SGD",
    }.items()
    for name in names.split()
}
"""The module of each public name."""

_SUBMODULES = (
    "adapters",
    "base",
    "cli",
    "conformance",
    "data",
    "demo",
    "distributed",
    "errors",
    "exercises",
    "factors",
    "functions",
    "graph",
    "io",
    "kernels",
    "layers",
    "models",
    "plot",
    "run",
    "sequences",
    "sklearn",
    "surgery",
    "terminal",
    "testing",
    "text",
    "training",
)


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
