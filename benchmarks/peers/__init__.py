"""What lora_np is compared with. Each module has a class `LoRA`, and perhaps a `MixedLoRA`, made from a problem:

- `forward()` gives y, without what only training needs,
- `step()` gives y and dx, and updates the factors,
- `factors()` gives A and B, as NumPy arrays of shapes (in, r) and (r, out).
"""

import importlib
import importlib.util
from types import ModuleType

TEXTBOOK, PEFT, TORCH, JAX = "NumPy textbook", "PEFT", "torch by hand", "JAX jit"

MODULES = {TEXTBOOK: "textbook", PEFT: "with_peft", TORCH: "torch_by_hand", JAX: "jax_jit"}
LIBRARIES = {TEXTBOOK: ("numpy",), PEFT: ("torch", "peft"), TORCH: ("torch",), JAX: ("jax",)}

NUMPY_ONLY = (TEXTBOOK,)
ALL = tuple(MODULES)


def is_installed(*libraries: str) -> bool:
    return all(importlib.util.find_spec(library) is not None for library in libraries)


def load(peer: str) -> ModuleType | None:
    """The module of a peer; None where its libraries are not installed."""
    return importlib.import_module(f".{MODULES[peer]}", __name__) if is_installed(*LIBRARIES[peer]) else None
