"""``lora-np merge`` and ``lora-np unmerge``: add an adapter to a checkpoint, or subtract it."""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

from ..errors import ArgumentError, FormatError
from ..factors.weights import AdapterWeights
from ..io._merging import EMBEDDINGS, HEADS
from ..io.folders import copy_model_files
from ..io.merge import INDEX, SINGLE, MergedTensor, checkpoint_files, merge_checkpoint, verify_checkpoint
from ..io.rounding import RoundingLoss, rounding_losses
from ..terminal.table import table
from ._adapters import at_rank, dropped, load_from_options
from ._options import ADAPTER, add_alpha, add_base_is_residual, add_drop, add_task, positive
from ._output import add_output, new_output
from ._text import counted, number, plain, printable, share
from .verb import Verb, add_json, print_json

Listener = Callable[[str, int], None]


def allowed_error(tensor: MergedTensor, rank: int) -> float:
    """The largest relative error that rounding explains: to the dtype, and in the preceding sum of `rank` products."""
    return 2 * tensor.precision + (rank + 8) * 2.0 ** (-53 if tensor.dtype == "F64" else -24)


# ---------------------------------------------------------------- the verbs


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "base",
        metavar="BASE",
        help="the checkpoint: a safetensors file, a folder with model.safetensors, or a folder with shards and their index",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help=f"the adapter: {ADAPTER}")
    add_output(parser, "the checkpoint to write: a file if BASE is one, otherwise a folder")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the written weights with those computed in float64, and keep OUT only if they agree",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="show, for each tensor, the exact change, what rounding to the dtype of BASE loses of it, and how many "
        "weights have not changed because the update is below half a unit in the last place",
    )
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="if BASE is a folder, do not copy its other files (configuration, tokenizer) to OUT",
    )
    _add_details(parser)
    add_task(parser)
    add_alpha(parser)
    add_drop(parser)
    add_json(parser)


def _add_details(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fan-in-fan-out",
        action=argparse.BooleanOptionalAction,
        help="BASE stores weights as (in, out), like Conv1D in transformers (default: as in the PEFT configuration)",
    )
    parser.add_argument(
        "--untie",
        action="store_true",
        help="write a separate output head if the adapter changes it and BASE uses its embedding as one",
    )
    parser.add_argument(
        "--rank", type=positive, metavar="R", help="the active rank of DyLoRA layers (default: the deployment rank of each)"
    )
    add_base_is_residual(parser)
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="the number of threads; the result does not depend on it (default: the number of processors, up to 4)",
    )


def _run(arguments: argparse.Namespace, *, subtract: bool) -> int:
    base, output = os.path.normpath(arguments.base), os.path.normpath(arguments.output)
    if not os.path.exists(base):
        raise ArgumentError(f"{base}: no such file or folder")
    adapter = at_rank(load_from_options(arguments.adapter, arguments, base=base), arguments.rank, arguments.adapter)
    transposed = arguments.fan_in_fan_out
    if transposed is None:
        transposed = bool(adapter.config.get("fan_in_fan_out"))
    options = {"subtract": subtract, "fan_in_fan_out": transposed, "untie": arguments.untie}
    files = checkpoint_files(base)
    is_folder = os.path.isdir(base) or base.endswith(".json")
    _check_output_is_not_base(files, output, is_folder)
    with new_output(output, folder=is_folder, force=arguments.force) as place:
        output_folder = place
        if os.path.isdir(base) and not os.path.isfile(os.path.join(base, INDEX)):
            os.mkdir(place)  # a folder with a single file is merged as a file, into a folder
            base, place = files[SINGLE], os.path.join(place, SINGLE)
        with _bar(sum(map(os.path.getsize, files.values()))) as progress:
            merged = merge_checkpoint(base, adapter, place, **options, threads=arguments.threads, progress=progress)
        if arguments.verify:
            merged = verify_checkpoint(base, adapter, place, **options)
            _check_errors(merged, output)
        skipped = _complete(arguments, adapter, output_folder, merged)
        losses = rounding_losses(base, adapter, place, **options) if arguments.report else None
    for name in skipped:
        print(
            f"lora-np: {printable(arguments.base)}: not copied: {printable(name)}, weights before the merge",
            file=sys.stderr,
        )
    if arguments.json:
        values = {"base": arguments.base, "adapter": arguments.adapter, "output": output, "dropped": dropped(adapter)}
        more = {} if losses is None else {"losses": plain([asdict(loss) | {"share": loss.share} for loss in losses])}
        print_json(values | {"tensors": _values(merged)} | more)
    else:
        print(_text(merged, several=len(files) > 1) if losses is None else _losses_text(losses))
        print(f"\n{output}: {counted(len(merged), 'tensor')} changed{', all verified' if arguments.verify else ''}")
    return 0


def _complete(arguments: argparse.Namespace, adapter: AdapterWeights, folder: str, merged: list[MergedTensor]) -> list[str]:
    """Copy the other files of a base's folder; the result is the weights in other formats, which are not copied."""
    if arguments.weights_only or not os.path.isdir(arguments.base):
        return []
    untied = arguments.untie and any(_module(tensor.key) in HEADS for tensor in merged)
    skipped = copy_model_files(arguments.base, folder, untied=untied, vocab_size=_vocabulary(adapter)).skipped
    written = {*os.listdir(folder)}
    return [name for name in skipped if name not in written]


def _vocabulary(adapter: AdapterWeights) -> int | None:
    """The number of tokens of the embedding and the head that an adapter has, which may be resized."""
    sizes = {len(tensor) for key, tensor in adapter.whole.items() if _module(key) in (*EMBEDDINGS, *HEADS)}
    return sizes.pop() if len(sizes) == 1 else None


def _module(key: str) -> str:
    return key.rpartition(".")[0].rpartition(".")[2]


def _check_output_is_not_base(files: dict[str, str], output: str, is_folder: bool) -> None:
    for name, file in files.items():
        written = os.path.join(output, name) if is_folder else output
        if os.path.exists(written) and os.path.samefile(file, written):
            raise ArgumentError(f"{output}: OUT must not be BASE")


def _check_errors(merged: list[MergedTensor], output: str) -> None:
    for tensor in merged:
        allowed = allowed_error(tensor, tensor.rank)
        if tensor.error is None or not tensor.error <= allowed:
            raise FormatError(
                f"{output}: {tensor.key} has a relative error of {tensor.error:.1e}, but rounding to {tensor.dtype} "
                f"explains only {allowed:.1e}; the output was discarded"
            )


# ---------------------------------------------------------------- output


def _text(merged: list[MergedTensor], *, several: bool) -> str:
    verified = [tensor for tensor in merged if tensor.error is not None]
    header = [
        "tensor",
        *(["file"] if several else []),
        "change",
        "dtype",
        "rounding",
        *(["measured error"] if verified else []),
    ]
    rows = [
        [
            printable(tensor.key),
            *([printable(tensor.file)] if several else []),
            tensor.change,
            tensor.dtype,
            f"{tensor.precision:.1e}",
            *([f"{tensor.error:.1e}"] if tensor.error is not None else []),
        ]
        for tensor in merged
    ]
    return table(header, rows, left=4 if several else 3)


def _losses_text(losses: list[RoundingLoss]) -> str:
    rows = [
        [printable(loss.key), loss.dtype, number(loss.change), number(loss.lost), share(loss.share), _unchanged(loss)]
        for loss in losses
    ]
    total = math.hypot(*(loss.change for loss in losses)), math.hypot(*(loss.lost for loss in losses))
    sizes = sum(loss.unchanged for loss in losses), sum(loss.size for loss in losses)
    whole = RoundingLoss("all", "", sizes[1], *total, sizes[0])
    rows.append(["all", "", number(total[0]), number(total[1]), share(whole.share), _unchanged(whole)])
    return table(["tensor", "dtype", "|change|", "|lost|", "lost", "weights unchanged"], rows, left=2)


def _unchanged(loss: RoundingLoss) -> str:
    return f"{loss.unchanged:,} ({share(loss.unchanged / max(1, loss.size))})"


def _values(merged: list[MergedTensor]) -> object:
    return plain([asdict(tensor) | {"precision": tensor.precision} for tensor in merged])


@contextlib.contextmanager
def _bar(size: int) -> Iterator[Listener | None]:
    """Context manager: a function that advances a progress bar; None without a terminal or without tqdm."""
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
    summary="merge an adapter into the weights of a checkpoint",
    example="lora-np merge model.safetensors my-adapter -o merged.safetensors --verify",
    add_arguments=_add_arguments,
    run=partial(_run, subtract=False),
)

UNMERGE = Verb(
    name="unmerge",
    summary="subtract a merged adapter from a checkpoint; rounding errors of the merge remain",
    example="lora-np unmerge merged.safetensors my-adapter -o model.safetensors --verify",
    add_arguments=_add_arguments,
    run=partial(_run, subtract=True),
)
