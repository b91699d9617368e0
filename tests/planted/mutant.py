"""What a planted bug is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A bug: its name, the file under lora_np, the exact text, its replacement, and the tests of which one must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
