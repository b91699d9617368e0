"""`generate`: continue prompts token by token, keeping the keys and values of earlier tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .._typing import RNG, Array
from .._validation import generator, integer, non_negative_float, not_none, positive_int
from ..base import Layer
from ..errors import ArgumentError, ArgumentOutOfRangeError, NonFiniteError
from ..run import Run, Tasks, checked_rank
from ..sequences import Past, Spans
from .causal import CausalLM


def generate(
    model: Layer,
    ids: Any,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    stop: int | Iterable[int] | None = None,
    rng: RNG = None,
    tasks: Iterable[str | None] | None = None,
    rank: int | Iterable[int] | None = None,
) -> Iterator[Array]:
    """Continue prompts: an iterator over the next token of each.

    The first token takes a pass over the prompts, each of the others a pass over one token, because the keys and values of
    all earlier ones are kept. The result is that of passes over everything, up to rounding. A prompt that has ended costs
    nothing more. The model is only read, so several generators may share it; it must not change before the last token.

    Parameters
    ----------
    model : CausalLM
    ids : array of int, shape (prompts, tokens)
        Padded at the end with -1: prompts may have different lengths.
    max_new_tokens : int
        The largest number of tokens to add to each prompt.
    temperature : float, default 0
        0 chooses the token with the largest logit. Otherwise a token is drawn with the probability
        ``softmax(z / temperature)``.
    top_k : int, optional
        Draw among the tokens with the k largest logits only (Fan, Lewis and Dauphin 2018), and those equal to the smallest
        of them.
    stop : int or sequence of int, optional
        Tokens that end a sentence, such as that of the end of a text.
    rng : seed or numpy.random.Generator, optional
        For the draws. They do not depend on which other prompts have ended.
    tasks : sequence of str or None, optional
        For each `MultiLoRAAdapter`, the task of each prompt; None means the base alone. By default, the current task.
    rank : int or sequence of int, optional
        For each `DyLoRAAdapter`, a rank, or a rank for each prompt. By default, the deployment rank.

    Yields
    ------
    array of int, shape (prompts,)
        The next token of each prompt; -1 for those that ended before. ``np.stack([*generate(...)], axis=1)`` is what
        follows the prompts, in the form of `ids`.

    Raises
    ------
    ArgumentError
        If an argument is invalid, or if prompts and new tokens need more positions than the model has; raised by the call,
        before the first token.
    NonFiniteError
        If a logit is infinite or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import CausalLM, LlamaModel, generate
    >>> config = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    >>> model = CausalLM(LlamaModel.new(config | dict(vocab_size=20, max_position_embeddings=32), rng=0))
    >>> np.stack([*generate(model, [[3, 1, 4], [1, 5, -1]], 6)], axis=1).shape
    (2, 6)
    """
    not_none("model", model)
    if not isinstance(model, CausalLM):
        raise ArgumentError(f"model must be a CausalLM, got {model!r}")
    prompts = model.check_input(ids, copy=True, name="ids")
    new = positive_int("max_new_tokens", max_new_tokens)
    longest = int((prompts >= 0).sum(axis=1).max(initial=0))
    if longest + new - 1 > model.positions:  # the last token is not read again
        rule = f"max_new_tokens must be at most {model.positions + 1 - longest} after a prompt of {longest} tokens"
        raise ArgumentError(f"{rule}, because the model has {model.positions} positions; got {new}")
    choice = _Choice(
        non_negative_float("temperature", temperature),
        None if top_k is None else positive_int("top_k", top_k),
        generator(rng),
    )
    ends = _stop_tokens(stop, model.output_size)
    return _tokens(model, prompts, new, choice, ends, _runs(model, prompts, tasks, rank))


def _stop_tokens(stop: int | Iterable[int] | None, vocabulary: int) -> Array:
    given = stop.tolist() if isinstance(stop, np.ndarray) else stop
    listed = [] if given is None else [*given] if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    tokens = [integer("stop", token) for token in listed]
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ArgumentOutOfRangeError(f"stop must contain ids in 0..{vocabulary - 1}, got {token}")
    return np.array(tokens, np.intp)


def _runs(model: CausalLM, prompts: Array, tasks: Iterable[str | None] | None, rank: Any) -> Callable[[Array], Run]:
    """The run of the prompts with given indices."""
    names = tuple(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else tasks
    if names is not None:
        Tasks.of(names, len(prompts))
    ranks = checked_rank(rank, len(prompts))
    if callable(ranks):
        raise ArgumentError(f"rank must be an integer, or an integer for each prompt, got {rank!r}")

    def run(indices: Array) -> Run:
        own_tasks = None if names is None else [names[i] for i in indices]
        own_rank = ranks[indices] if isinstance(ranks, np.ndarray) else ranks
        return model.new_run(prompts[indices], tasks=own_tasks, rank=own_rank, keep=False)

    run(np.arange(len(prompts)))  # whether the model has these tasks and ranks
    return run


class _Choice(NamedTuple):
    """How a token is chosen."""

    temperature: float
    top_k: int | None
    random: np.random.Generator

    def tokens(self, z: Array, prompts: Array, count: int) -> Array:
        """A token for each of the given prompts, of `count`, given their logits: (prompts, V) -> (prompts,)."""
        if not self.temperature:
            return z.argmax(axis=1)
        u = self.random.random(count)[prompts]
        with np.errstate(over="ignore"):  # -inf is the limit for low temperatures
            z = (z - z.max(axis=1, keepdims=True)).astype(np.float64) / self.temperature
        if self.top_k is not None and self.top_k < z.shape[1]:
            smallest = np.partition(z, -self.top_k)[:, -self.top_k, np.newaxis]
            z[z < smallest] = -np.inf
        distribution = np.exp(z).cumsum(axis=1)  # times a constant
        return (distribution <= u[:, np.newaxis] * distribution[:, -1:]).sum(axis=1)


def _tokens(
    model: CausalLM, prompts: Array, new: int, choice: _Choice, ends: Array, runs: Callable[[Array], Run]
) -> Iterator[Array]:
    lengths = (prompts >= 0).sum(axis=1)
    active, past = np.arange(len(prompts)), Past(int(lengths.max(initial=0)) + new - 1)
    run, ids, spans = runs(active), prompts[prompts >= 0], Spans.of(lengths)
    for _ in range(new if len(prompts) else 0):
        h, _ = model.body.apply(ids, run.over(spans)._replace(past=past))  # (N, D)
        z, _ = model.head.apply(h[spans.starts + spans.lengths - 1], run)  # (active, D) -> (active, V)
        if not np.isfinite(z).all():
            raise NonFiniteError("the logits of the next token are not finite")
        ids = choice.tokens(z, active, len(prompts))
        tokens = np.full(len(prompts), -1)
        tokens[active] = ids
        yield tokens
        goes_on = ~np.isin(ids, ends)
        if not goes_on.all():
            active, ids, lengths = active[goes_on], ids[goes_on], lengths[goes_on]
            if not len(active):
                return
            past.keep(np.flatnonzero(goes_on))
            run = runs(active)
        spans = Spans.of(np.ones_like(lengths), offsets=lengths)
        lengths = lengths + 1
