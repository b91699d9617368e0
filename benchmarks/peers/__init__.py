"""What lora_np is compared with. Each module has some of these classes, made from a problem:

- for a small network, `Fit`, with LoRA on its layers, trained with Adam,
- for one layer, `LoRA`, and `MixedLoRA` with a task for each row,
- for a transformer, `Encoder`, `AdaptedEncoder` with LoRA on its targets, `RoutedEncoder` with a task for each sentence,
- for a language model, `Decoder`, whose only method is `tokens()`, the greedy tokens of its prompts.

Their methods:

- `forward()` returns y, without anything needed only for training,
- `step()` returns y and dx (y alone for an encoder, whose input has no gradient), and updates the factors,
- `epoch()` of a `Fit` trains on all samples once, and returns the loss of each batch,
- `factors()` returns A and B, as NumPy arrays of shapes (d_in, r) and (r, d_out); those of an encoder by layer.
"""

import importlib
import importlib.util
from types import ModuleType

TEXTBOOK, GATHER, PEFT, TORCH, TRANSFORMERS, JAX = (
    "NumPy textbook",
    "NumPy gather",
    "PEFT",
    "torch by hand",
    "transformers",
    "JAX jit",
)

MODULES = {
    TEXTBOOK: "textbook",
    GATHER: "gather",
    PEFT: "with_peft",
    TORCH: "torch_by_hand",
    TRANSFORMERS: "with_transformers",
    JAX: "jax_jit",
}
LIBRARIES = {
    TEXTBOOK: ("numpy",),
    GATHER: ("numpy",),
    PEFT: ("torch", "peft"),
    TORCH: ("torch",),
    TRANSFORMERS: ("torch", "transformers"),
    JAX: ("jax",),
}

NUMPY_ONLY = (TEXTBOOK, GATHER)
ALL = tuple(MODULES)


def is_installed(*libraries: str) -> bool:
    return all(importlib.util.find_spec(library) is not None for library in libraries)


def load(peer: str) -> ModuleType | None:
    """The module of a peer; None if its libraries are not installed."""
    return importlib.import_module(f".{MODULES[peer]}", __name__) if is_installed(*LIBRARIES[peer]) else None
