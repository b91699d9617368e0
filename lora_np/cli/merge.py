"""``lora-np merge`` and ``lora-np unmerge``: adapters into checkpoints, and out of them."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ..io.merge import INDEX, SINGLE, MergedTensor, checkpoint_files, merge_checkpoint, verify_checkpoint
from ..terminal.table import table
from ._adapters import ADAPTER, add_choice, at_rank, load_adapter
from ._options import positive
from ._output import add_output, new_output
from ._text import counted, plain, printable
from .verb import Verb, add_json, print_json

Listener = Callable[[str, int], None]


def allowed_error(tensor: MergedTensor, rank: int) -> float:
    """The largest relative error that rounding explains: of the dtype, and of the sum of `rank` products before it."""
    return 2 * tensor.precision + (rank + 8) * 2.0 ** (-53 if tensor.dtype == "F64" else -24)


# ---------------------------------------------------------------- the verbs


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "base",
        metavar="BASE",
        help="the checkpoint: a safetensors file, or a folder with model.safetensors or with shards and their index",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    add_output(parser, "the checkpoint to write: a file if BASE is one, otherwise a folder, of weights alone")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare what was written with the sum in float64; OUT appears only if it is right",
    )
    parser.add_argument(
        "--fan-in-fan-out",
        action=argparse.BooleanOptionalAction,
        help="BASE stores weights as (in, out), as Conv1D of transformers does (default: what a PEFT configuration says)",
    )
    parser.add_argument(
        "--rank", type=positive, metavar="R", help="the active rank of DyLoRA layers (default: the one that each deploys)"
    )
    add_choice(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace, *, subtract: bool) -> int:
    base, output = os.path.normpath(arguments.base), os.path.normpath(arguments.output)
    if not os.path.exists(base):
        raise ArgumentError(f"{base}: there is no such file or folder")
    adapter = load_adapter(arguments.adapter, task=arguments.task, strict=not arguments.lenient)
    adapter = at_rank(adapter, arguments.rank, arguments.adapter)
    transposed = arguments.fan_in_fan_out
    if transposed is None:
        transposed = bool(adapter.config.get("fan_in_fan_out"))
    if adapter.magnitudes and (subtract or transposed):
        problem = "taken out of a weight again" if subtract else "merged into weights stored as (in, out)"
        raise NotSupportedError(f"{arguments.adapter}: a DoRA adapter cannot be {problem}")
    files = checkpoint_files(base)
    is_folder = os.path.isdir(base) or base.endswith(".json")
    _refuse_the_base(files, output, is_folder)
    with new_output(output, folder=is_folder, force=arguments.force) as place:
        if os.path.isdir(base) and not os.path.isfile(os.path.join(base, INDEX)):
            os.mkdir(place)
            base, place = files[SINGLE], os.path.join(place, SINGLE)
        with _bar(sum(map(os.path.getsize, files.values()))) as progress:
            merged = merge_checkpoint(base, adapter, place, subtract=subtract, fan_in_fan_out=transposed, progress=progress)
        if arguments.verify:
            merged = verify_checkpoint(base, adapter, place, subtract=subtract, fan_in_fan_out=transposed)
            _check(merged, adapter, output)
    if arguments.json:
        print_json({"base": arguments.base, "adapter": arguments.adapter, "output": output, "tensors": _values(merged)})
    else:
        print(_text(merged, several=len(files) > 1))
        print(f"\n{output}: {counted(len(merged), 'tensor')} changed{', all verified' if arguments.verify else ''}")
    return 0


def _refuse_the_base(files: dict[str, str], output: str, is_folder: bool) -> None:
    for name, file in files.items():
        written = os.path.join(output, name) if is_folder else output
        if os.path.exists(written) and os.path.samefile(file, written):
            raise ArgumentError(f"{output}: OUT must be another place than BASE")


def _check(merged: list[MergedTensor], adapter: AdapterWeights, output: str) -> None:
    for tensor in merged:
        allowed = allowed_error(tensor, adapter.layers[tensor.key.removesuffix(".weight")].rank)
        if tensor.error is None or not tensor.error <= allowed:
            raise FormatError(
                f"{output}: {tensor.key} is off by {tensor.error:.1e} of its largest element, "
                f"and rounding to {tensor.dtype} explains {allowed:.1e}; nothing is kept"
            )


# ---------------------------------------------------------------- what is printed


def _text(merged: list[MergedTensor], *, several: bool) -> str:
    verified = [tensor for tensor in merged if tensor.error is not None]
    header = ["tensor", *(["file"] if several else []), "dtype", "rounding", *(["measured error"] if verified else [])]
    rows = [
        [
            printable(tensor.key),
            *([printable(tensor.file)] if several else []),
            tensor.dtype,
            f"{tensor.precision:.1e}",
            *([f"{tensor.error:.1e}"] if tensor.error is not None else []),
        ]
        for tensor in merged
    ]
    return table(header, rows, left=3 if several else 2)


def _values(merged: list[MergedTensor]) -> object:
    return plain([asdict(tensor) | {"precision": tensor.precision} for tensor in merged])


@contextlib.contextmanager
def _bar(size: int) -> Iterator[Listener | None]:
    """What draws the progress on a terminal; None where there is no terminal, or no tqdm."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        yield None
        return
    with tqdm(total=size, unit="B", unit_scale=True, leave=False, file=sys.stderr) as bar:

        def advance(key: str, written: int) -> None:
            bar.set_description_str(printable(key), refresh=False)
            bar.update(written)

        yield advance


MERGE = Verb(
    name="merge",
    summary="write a checkpoint whose weights hold an adapter",
    example="lora-np merge model.safetensors my-adapter -o merged.safetensors --verify",
    add_arguments=_add_arguments,
    run=partial(_run, subtract=False),
)

UNMERGE = Verb(
    name="unmerge",
    summary="take an adapter out of a checkpoint again, up to what the merge lost to rounding",
    example="lora-np unmerge merged.safetensors my-adapter -o model.safetensors --verify",
    add_arguments=_add_arguments,
    run=partial(_run, subtract=True),
)
