"""The best ranks of several low-rank layers for a given number of parameters in all.

Notes
-----
A component of a layer is worth its energy σ² and costs ``d_in + d_out`` parameters. Layers of the same cost form a class,
in which the best k components are those with the largest singular values. It remains to choose the number k of components
of each class, which is a knapsack problem. Let λ be the energy per parameter at which the budget is used up if components
are taken in the order of that ratio. By Lagrangian duality, every choice falls short of the same upper bound by exactly
``Σ loss(k) + λ · unused``, where the loss of a class is the difference of ``energy(k) - λ cost(k)`` from its maximum over
k. Only choices whose losses are below the shortfall of the best choice so far can improve on it; no other choice is tried.
So the result is optimal, and the search is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .._typing import Array
from ..errors import ArgumentError


class _Class(NamedTuple):
    """The components of all layers of one cost."""

    cost: int
    layers: Array
    """The layer of each component, by descending energy."""
    energies: Array
    """The energy of the first k components, for each k."""


def best_ranks(spectra: Sequence[Array], costs: Sequence[int], budget: int) -> list[int]:
    """The ranks with the largest retained energy, for a number of parameters in all; each is at least 1.

    Parameters
    ----------
    spectra : sequence of array
        The singular values of each layer, in descending order.
    costs : sequence of int
        The parameters for each rank of each layer: input_size + output_size.
    budget : int
        The largest total number of parameters. A rank whose components are zero is not used.

    Raises
    ------
    ArgumentError
        If the budget does not suffice for rank 1 of every layer.
    """
    left = budget - sum(costs)
    if left < 0:
        raise ArgumentError(f"parameters must be at least {sum(costs)}, for rank 1 of every layer, got {budget}")
    classes = [_class(cost, spectra, costs) for cost in sorted(set(costs), reverse=True)]
    ranks = np.ones(len(costs), int)
    for one, count in zip(classes, _best_counts(classes, left), strict=True):
        np.add.at(ranks, one.layers[:count], 1)
    return ranks.tolist()


def _class(cost: int, spectra: Sequence[Array], costs: Sequence[int]) -> _Class:
    parts = [(number, np.square(sigma[1:], dtype=float)) for number, sigma in enumerate(spectra) if costs[number] == cost]
    values = np.concatenate([energy for _, energy in parts])
    layers = np.concatenate([np.full(len(energy), number) for number, energy in parts])
    order = np.argsort(-values, kind="stable")  # stable: the components of a layer keep their order
    order = order[values[order] > 0]
    return _Class(cost, layers[order], np.concatenate([[0.0], np.cumsum(values[order])]))


def _best_counts(classes: Sequence[_Class], budget: int) -> list[int]:
    """The number of components of each class."""
    price, counts = _greedy(classes, budget)
    losses, orders = [], []
    for one in classes:
        value = one.energies - price * one.cost * np.arange(len(one.energies))
        losses.append(value.max() - value)
        orders.append(np.argsort(losses[-1], kind="stable"))
    unused = budget - sum(one.cost * count for one, count in zip(classes, counts, strict=True))
    best = sum(float(loss[count]) for loss, count in zip(losses, counts, strict=True)) + price * unused

    def search(number: int, chosen: list[int], left: int, shortfall: float) -> None:
        nonlocal best, counts
        one = classes[number]
        if number == len(classes) - 1:
            count = min(left // one.cost, len(one.layers))
            shortfall += float(losses[number][count]) + price * (left - one.cost * count)
            if shortfall < best:
                best, counts = shortfall, [*chosen, count]
            return
        for count in orders[number].tolist():
            more = shortfall + float(losses[number][count])
            if more >= best:
                break
            if one.cost * count <= left:
                search(number + 1, [*chosen, count], left - one.cost * count, more)

    search(0, [], budget, 0.0)
    return counts


def _greedy(classes: Sequence[_Class], budget: int) -> tuple[float, list[int]]:
    """The energy per parameter at which the budget is used up, and the counts of a good choice."""
    ratios = np.concatenate([np.diff(one.energies) / one.cost for one in classes])
    owners = np.concatenate([np.full(len(one.layers), number) for number, one in enumerate(classes)])
    counts, price = [0] * len(classes), 0.0
    for component in np.argsort(-ratios, kind="stable").tolist():
        owner = int(owners[component])
        if classes[owner].cost <= budget:
            counts[owner] += 1
            budget -= classes[owner].cost
        elif not price:
            price = float(ratios[component])
    return price, counts
