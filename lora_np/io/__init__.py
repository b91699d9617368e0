"""Files: one module per format. The functions of every format, except ONNX, can also be imported from here."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from .npz import load_layer, save_layer

if TYPE_CHECKING:
    from . import base_names as base_names
    from . import diffusers as diffusers
    from . import extract as extract
    from . import folders as folders
    from . import gguf as gguf
    from . import kohya as kohya
    from . import merge as merge
    from . import mlx as mlx
    from . import npz as npz
    from . import onnx as onnx
    from . import peft as peft
    from . import pipelines as pipelines
    from . import pretrained as pretrained
    from . import rounding as rounding
    from . import safetensors as safetensors
    from .base_names import with_base_names
    from .diffusers import load_diffusers, save_diffusers
    from .extract import extract_adapter
    from .gguf import GGUFFile
    from .kohya import load_kohya, save_kohya
    from .merge import merge_checkpoint
    from .mlx import load_mlx, save_mlx
    from .peft import apply_peft, load_peft, save_peft
    from .pipelines import merge_pipeline
    from .pretrained import load_pretrained
    from .rounding import rounding_losses
    from .safetensors import SafetensorsFile, save_safetensors
else:  # a type checker that saw __getattr__ would accept any attribute

    def __getattr__(name):
        """Import a submodule, or the module of a name, on first use (PEP 562)."""
        if name in _SUBMODULES:
            return _import_module(f"{__name__}.{name}")
        if name in _HOMES:
            return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "GGUFFile",
    "SafetensorsFile",
    "apply_peft",
    "extract_adapter",
    "load_diffusers",
    "load_kohya",
    "load_layer",
    "load_mlx",
    "load_peft",
    "load_pretrained",
    "merge_checkpoint",
    "merge_pipeline",
    "save_diffusers",
    "save_kohya",
    "rounding_losses",
    "save_layer",
    "save_mlx",
    "save_peft",
    "save_safetensors",
    "with_base_names",
]

_SUBMODULES = (
    "base_names",
    "diffusers",
    "extract",
    "folders",
    "gguf",
    "kohya",
    "merge",
    "mlx",
    "npz",
    "onnx",
    "peft",
    "pipelines",
    "pretrained",
    "rounding",
    "safetensors",
)

_HOMES = {
    "GGUFFile": "gguf",
    "SafetensorsFile": "safetensors",
    "apply_peft": "peft",
    "extract_adapter": "extract",
    "load_diffusers": "diffusers",
    "load_kohya": "kohya",
    "load_mlx": "mlx",
    "load_peft": "peft",
    "load_pretrained": "pretrained",
    "merge_checkpoint": "merge",
    "merge_pipeline": "pipelines",
    "save_diffusers": "diffusers",
    "save_kohya": "kohya",
    "save_mlx": "mlx",
    "rounding_losses": "rounding",
    "save_peft": "peft",
    "save_safetensors": "safetensors",
    "with_base_names": "base_names",
}
"""The module of each name that is imported on first use."""


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
