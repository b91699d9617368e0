"""Hypothesis strategies for awkward arrays and adapters.

The special case is made common on purpose: an active rank below the maximum in at least half of the DyLoRA adapters.
"""

import numpy as np
from hypothesis import strategies as st

from lora_np import DyLoRAAdapter
from tests.kinds import BASES, KINDS, batch, randomised

seeds = st.integers(0, 2**32 - 1)
leading_axes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
"""None to three axes in front of the last, some of them without a row."""


def sizes(smallest=1):
    """(input_size, output_size), never equal: a square matrix forgives a transposition."""
    one = st.integers(smallest, 7)
    return st.tuples(one, one).filter(lambda pair: pair[0] != pair[1])


def contiguous(array):
    return array


def reversed_in_memory(array):
    return array[..., ::-1].copy()[..., ::-1]


def strided(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


def read_only(array):
    array.setflags(write=False)
    return array


LAYOUTS = [contiguous, np.asfortranarray, reversed_in_memory, strided, read_only]


@st.composite
def arrays(draw, shape):
    """Real numbers of a shape, in any memory layout, of a floating or an integer dtype."""
    values = 3 * batch(*shape, seed=draw(seeds))
    return draw(st.sampled_from(LAYOUTS))(values.astype(draw(st.sampled_from([np.float64, np.float32, np.int64, np.int8]))))


@st.composite
def adapters(draw, kinds=tuple(KINDS), smallest=1):
    """A randomised adapter of any kind, on a linear base of either layout."""
    input_size, output_size = draw(sizes(smallest))
    base = draw(st.sampled_from(list(BASES.values())))(input_size, output_size)
    rank = draw(st.integers(1, min(input_size, output_size)))
    alpha = draw(st.sampled_from([-1.0, 0.5, 3.0]))
    adapter = KINDS[draw(st.sampled_from(kinds))](base, rank, alpha, draw(st.booleans()), rng=0)
    return randomised(adapter, draw(seeds))


@st.composite
def dylora_adapters(draw, mode=None):
    """A randomised DyLoRA whose training and deployment rank are one drawn rank, mostly below the maximum."""
    below = draw(st.sampled_from([True, True, True, False]))
    input_size, output_size = draw(sizes(smallest=2 if below else 1))
    max_rank = draw(st.integers(2 if below else 1, min(input_size, output_size)))
    rank = draw(st.integers(1, max_rank - 1)) if below else max_rank
    active_ranks = sorted({rank} | draw(st.sets(st.integers(1, max_rank))))
    adapter = DyLoRAAdapter(
        draw(st.sampled_from(list(BASES.values())))(input_size, output_size),
        max_rank,
        active_ranks,
        draw(st.sampled_from([-1.0, 3.0])),
        draw(st.booleans()),
        mode=mode or draw(st.sampled_from(["full", "frozen"])),
        scaling=draw(st.sampled_from(["max", "paper", "rslora"])),
        rng=0,
    )
    adapter.current_deployment_rank = rank
    return randomised(adapter, draw(seeds))


@st.composite
def passes(draw, adapter_strategy):
    """An adapter, an input and an output gradient."""
    adapter = draw(adapter_strategy)
    leading = draw(leading_axes)
    return adapter, draw(arrays((*leading, adapter.input_size))), draw(arrays((*leading, adapter.output_size)))
