"""Training on text: the cross-entropy of the next token, and the targets of prompts with answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np

from .._typing import Array
from .._validation import integer
from ..errors import ArgumentError, InvalidOperationError
from ..functions.losses import Loss, check_labels, labels_of_rows
from ..run import EVALUATION
from .causal import CausalLM

PIECE = 1 << 22
"""The largest number of logits in memory at a time: 16 MiB in float32."""


@final
class NextTokenLoss(Loss):
    """The negative log-likelihood of the next token, from the hidden states of a causal model.

    It has the value of `SoftmaxCrossEntropy` on the logits of the model. It applies the model's head itself, to a few rows
    at a time and only to rows with a target, so that the logits of a large vocabulary are never in memory together. A model
    whose head does not train is trained by ``fit(model.body, (ids, targets), NextTokenLoss(model), ...)``.

    Parameters
    ----------
    model : CausalLM
        Its head must not train, because a loss computes no gradients of parameters. `apply_lora` freezes it, unless it is
        one of the targets.

    Raises
    ------
    ArgumentError
        If `model` is not a CausalLM.
    InvalidOperationError
        If the head trains; `SoftmaxCrossEntropy` on the logits of the model trains it.

    Notes
    -----
    With hidden states H, (rows, D), of the n rows whose target t is not -1 or -100, and the matrix W of the head, (V, D)::

        Z = H Wᵀ,  P = softmax(Z),  L = -Σ log P[row, t] / n
        dZ = (P - onehot(t)) / n,   dH = dZ W

    The one-hot matrix is never made: 1 / n is subtracted from one element of each row. With weights, each
    row has a separate share instead of 1 / n.

    Examples
    --------
    >>> from lora_np import AdamW, CausalLM, LlamaModel, NextTokenLoss, StandardLoRAAdapter, apply_lora, fit
    >>> from lora_np.models.next_token import next_token_data
    >>> config = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    >>> model = CausalLM(LlamaModel.new(config | dict(vocab_size=20, max_position_embeddings=32), rng=0))
    >>> adapted = apply_lora(model, StandardLoRAAdapter, rank=2, targets=["q_proj", "v_proj"], rng=1)
    >>> data = next_token_data(prompts=[[3, 1, 4], [1, 5]], answers=[[9, 2], [6]])
    >>> history = fit(adapted.body, data, NextTokenLoss(adapted), AdamW(1e-2), epochs=2, batch_size=2)
    """

    def __init__(self, model: CausalLM) -> None:
        if not isinstance(model, CausalLM):
            raise ArgumentError(f"model must be a CausalLM, got {model!r}")
        if any(name.startswith(f"{model.head_name}.") for name in model.named_parameters()):
            raise InvalidOperationError(
                f"{model.head_name} trains, but NextTokenLoss computes no gradients of the head; freeze it, "
                "or train the model with SoftmaxCrossEntropy on its logits"
            )
        self.head = model.head

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """Integer targets, of the shape of the hidden states without the last axis; -1 or -100 where there is none."""
        size, vocabulary = self.head.input_size, self.head.output_size
        if predictions.ndim == 0 or predictions.shape[-1] != size:
            raise ArgumentError(
                f"predictions must be hidden states of shape (..., {size}), the output of the model's body, "
                f"got shape {predictions.shape}"
            )
        if targets.dtype.kind not in "iu" or targets.shape != predictions.shape[:-1]:
            raise ArgumentError(
                f"targets must be integers of shape {predictions.shape[:-1]}, got {targets.dtype} of shape {targets.shape}"
            )
        check_labels(targets, vocabulary)
        without = np.flatnonzero((targets < 0).all(axis=-1)) if targets.ndim else np.flatnonzero(targets < 0)
        if without.size:
            raise ArgumentError(
                f"targets must have an id that is not ignored in each sequence, got none in sequence {without[0]}"
            )
        return targets

    def terms(self, targets: Array) -> Array:
        """The number of tokens of each sequence that are not ignored."""
        return labels_of_rows(targets)

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """The value and the gradient of the hidden states."""
        return self._mean(predictions, targets, np.ones(targets.size, predictions.dtype))

    def compute_weighted(self, predictions: Array, targets: Array, factors: Array) -> tuple[Any, Array]:
        """The value and the gradient, with a factor for each sequence."""
        return self._mean(predictions, targets, np.repeat(factors, targets[0].size if len(targets) else 0))

    def _mean(self, predictions: Array, targets: Array, factors: Array) -> tuple[Any, Array]:
        """The value and the gradient, with a factor for each token."""
        hidden, labels = predictions.reshape(-1, predictions.shape[-1]), targets.reshape(-1)
        rows = np.flatnonzero(labels >= 0)
        shares = factors / max(len(rows), 1)
        gradient = np.zeros_like(hidden)
        at_once = max(1, PIECE // self.head.output_size)
        total: Any = 0.0
        for start in range(0, len(rows), at_once):
            piece = rows[start : start + at_once]
            loss, gradient[piece] = self._summed(hidden[piece], labels[piece], shares[piece])
            total += loss
        return total, gradient.reshape(predictions.shape)

    def _summed(self, h: Array, targets: Array, shares: Array) -> tuple[Any, Array]:
        """``-Σ s log P[row, t]`` and ``dH = dZ W`` of some rows with shares s. One array holds Z, then P, then dZ."""
        z, cache = self.head.apply(h, EVALUATION)  # (rows, V)
        t = np.arange(len(h)), targets
        z -= z.real.max(axis=1, keepdims=True)
        chosen = z[t]
        p = np.exp(z, out=z)
        sums = p.sum(axis=1, keepdims=True)
        p /= sums
        dz = np.multiply(p, shares[:, None], out=p)
        dz[t] -= shares
        dh, _ = self.head.vjp(dz, cache, parameters=False)
        assert dh is not None
        return (shares * (np.log(sums[:, 0]) - chosen)).sum(), dh


def next_token_data(prompts: Iterable[Any], answers: Iterable[Any]) -> tuple[Array, Array]:
    """Inputs and targets for training a causal model to answer prompts: the data of `fit` with `NextTokenLoss`.

    Parameters
    ----------
    prompts, answers : sequences of sequences of int, or arrays of shape (sequences, tokens) padded with -1
        Token ids, such as those of `Tokenizer.encode`. A prompt may be empty if its answer has at least two tokens; then
        the first token of the answer is given and not learned.

    Returns
    -------
    ids, targets : arrays of int, shape (sequences, tokens)
        The tokens of prompt and answer, without the last, and at each the token that follows if it belongs to the answer.
        Targets inside a prompt, and the padding of both arrays, are -1.

    Raises
    ------
    ArgumentError
        If the numbers of prompts and answers differ, an id is not a non-negative integer, an answer is empty, or a prompt
        is empty and its answer has only one token.

    Examples
    --------
    >>> from lora_np.models.next_token import next_token_data
    >>> ids, targets = next_token_data(prompts=[[3, 1, 4], [1]], answers=[[9, 2], [6, 5]])
    >>> ids.tolist(), targets.tolist()
    ([[3, 1, 4, 9], [1, 6, -1, -1]], [[-1, -1, 9, 2], [6, 5, -1, -1]])
    """
    asked, answered = _token_lists("prompts", prompts), _token_lists("answers", answers)
    if len(asked) != len(answered) or not asked:
        raise ArgumentError(
            f"prompts and answers must have the same, non-zero length, got {len(asked)} and {len(answered)}"
        )
    for row, (prompt, answer) in enumerate(zip(asked, answered, strict=True)):
        if not answer or len(prompt) + len(answer) < 2:
            raise ArgumentError(f"answers must leave at least one token to learn, got {answer} after {prompt} in row {row}")
    pairs = list(zip(asked, answered, strict=True))
    inputs = [(prompt + answer)[:-1] for prompt, answer in pairs]
    targets = [
        ([-1] * (len(prompt) - 1) + answer)[-len(ids) :] for (prompt, answer), ids in zip(pairs, inputs, strict=True)
    ]
    return padded(inputs), padded(targets)


def padded(rows: Sequence[Sequence[int]]) -> Array:
    """Rows of different lengths as one array, padded at the end with -1."""
    array = np.full((len(rows), max(map(len, rows))), -1, np.intp)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array


def _token_lists(name: str, sequences: Iterable[Any]) -> list[list[int]]:
    """The ids of each sequence, without the padding at its end."""
    if isinstance(sequences, str) or not isinstance(sequences, Iterable):
        raise ArgumentError(f"{name} must be a sequence of sequences of token ids, got {sequences!r}")
    rows = []
    for sequence in sequences:
        if isinstance(sequence, str) or not isinstance(sequence, Iterable):
            raise ArgumentError(f"{name} must contain sequences of token ids, got {sequence!r}")
        ids = [integer(f"each of {name}", token) for token in sequence]
        while ids and ids[-1] == -1:
            ids.pop()
        if any(token < 0 for token in ids):
            raise ArgumentError(f"{name} must contain non-negative ids, and -1 at the end as padding, got {ids}")
        rows.append(ids)
    return rows
