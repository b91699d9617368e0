"""Accumulation: the gradient of a batch from those of its pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .._typing import Array, Gradients, Part, Parts


def summed(shares: Iterable[tuple[float, float, Mapping[str, Array], Parts]]) -> tuple[float, Gradients, Parts]:
    """Add up the losses and gradients of the pieces of a batch.

    Parameters
    ----------
    shares : iterable of (weight, loss, gradients, parts)
        Of each piece: its fraction of the terms that the loss is a mean over, its loss, its gradients, and the trained part
        of each array that is not trained in full.

    Returns
    -------
    loss : float
    gradients : dict of arrays by name
    parts : dict of tuples of slices by name
        The smallest parts that contain those of all pieces.
    """
    value, gradients, parts = 0.0, dict[str, Array](), dict[str, Part]()
    for weight, loss, more, theirs in shares:
        value += weight * loss
        for name, gradient in more.items():
            weighted = gradient * weight
            if name not in gradients:
                gradients[name] = weighted
                parts |= {name: theirs[name]} if name in theirs else {}
                continue
            gradients[name] = gradients[name] + weighted
            if name in parts and name in theirs:
                parts[name] = tuple(map(_span, parts[name], theirs[name]))
            else:  # at least one piece trains the whole array
                parts.pop(name, None)
    return value, gradients, parts


def _span(a: slice, b: slice) -> slice:
    """The smallest slice that contains both."""
    start = min(a.start or 0, b.start or 0) or None
    return slice(start, None if None in (a.stop, b.stop) else max(a.stop, b.stop))
