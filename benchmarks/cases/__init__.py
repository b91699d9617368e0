"""All groups, in the order of the page. A new group needs a function that yields rows, and a line here."""

from ..groups import Group
from . import cold_start, decoder, dylora, forward, growth, memory, multilora, step, training, transformer

GROUPS: tuple[Group, ...] = (
    *step.GROUPS,
    *forward.GROUPS,
    *training.GROUPS,
    *dylora.GROUPS,
    *multilora.GROUPS,
    *transformer.GROUPS,
    *decoder.GROUPS,
    *memory.GROUPS,
    *cold_start.GROUPS,
    *growth.GROUPS,
)
