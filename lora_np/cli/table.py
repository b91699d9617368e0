"""Aligned tables of text."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table in plain text, its columns aligned.

    Parameters
    ----------
    header : sequence of str
    rows : sequences of str, as many cells as the header has
    left : int, default 1
        How many columns, from the first, hold text and are flush left; the others hold numbers and are flush right.

    Returns
    -------
    str
        Without a newline at the end.

    Examples
    --------
    >>> print(table(["method", "rank"], [["LoRA", "8"], ["DyLoRA", "16"]]))
    method  rank
    ------  ----
    LoRA       8
    DyLoRA    16
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(_line(cells, widths, left) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    pairs = list(zip(cells, widths, strict=True))
    padded = [cell.ljust(width) for cell, width in pairs[:left]] + [cell.rjust(width) for cell, width in pairs[left:]]
    return "  ".join(padded).rstrip()
