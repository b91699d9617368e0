"""What lora_np is compared with. Each module has a class `LoRA`, and some have a `MixedLoRA`, made from a problem:

- `forward()` returns y, without anything needed only for training,
- `step()` returns y and dx, and updates the factors,
- `factors()` returns A and B, as NumPy arrays of shapes (d_in, r) and (r, d_out).
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
    """The module of a peer; None if its libraries are not installed."""
    return importlib.import_module(f".{MODULES[peer]}", __name__) if is_installed(*LIBRARIES[peer]) else None
