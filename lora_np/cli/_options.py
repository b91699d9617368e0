"""Options that several commands share, and parsers for option values."""

import argparse
import math

ADAPTER = "a PEFT folder, an mlx-lm folder, a kohya or diffusers file, or a lora_np npz file"


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--task``."""
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="the adapter to use if there are several: a task of a MultiLoRA model, or a named adapter of a PEFT folder",
    )


def add_drop(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--drop``."""
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out the tensors of an adapter file whose names match a shell pattern such as '*.bias'; can be repeated",
    )


def add_alpha(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--alpha``."""
    parser.add_argument(
        "--alpha",
        type=tolerance,
        metavar="A",
        help="the alpha of the layers for which a diffusers file or a PEFT file without its folder stores none (default: "
        "their rank)",
    )


def add_base_is_residual(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--base-is-residual``."""
    parser.add_argument(
        "--base-is-residual",
        action="store_true",
        help="BASE has the weights that the initialisation of the adapter (PiSSA, OLoRA, CorDA, LoftQ) has changed",
    )


def positive(text: str) -> int:
    """Parse a positive integer."""
    value = _whole(text)
    if not value:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def seed(text: str) -> int:
    """Parse a non-negative integer."""
    value = _whole(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"must be a non-negative integer, got {text!r}")
    return value


def finite(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
    return value


def fraction(text: str) -> float:
    """Parse a number in (0, 1]."""
    value = finite(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in (0, 1], got {text!r}")
    return value


def at_least_1(text: str) -> float:
    """Parse a number of at least 1."""
    value = finite(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return value


def tolerance(text: str) -> float:
    """Parse a number of at least 0."""
    value = finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text!r}")
    return value


def positive_seconds(text: str) -> float:
    """Parse a number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be greater than 0, got {text!r}")
    return value


def _whole(text: str) -> int | None:
    """The value of a string of ASCII digits; None for any other text, and for more digits than `int` parses."""
    try:
        return int(text) if text.isascii() and text.isdecimal() else None
    except ValueError:
        return None
