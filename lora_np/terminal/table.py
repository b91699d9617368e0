"""Plain-text tables."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A plain-text table with aligned columns.

    Parameters
    ----------
    header : sequence of str
    rows : iterable of sequences of str
        Each row has one cell per column.
    left : int, default 1
        The number of leading columns that are left-aligned (text); the others are right-aligned (numbers).

    Returns
    -------
    str
        The lines of the table, without a trailing newline.

    Raises
    ------
    ValueError
        If the number of cells in a row differs from that in the header.

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
