"""``lora-np merge`` and ``lora-np unmerge``: add an adapter to a checkpoint, or subtract it."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

from ..errors import ArgumentError, FormatError
from ..factors.weights import AdapterWeights
from ..io._tied_heads import EMBEDDINGS, HEADS
from ..io.folders import copy_model_files
from ..io.merge import MergedTensor, checkpoint_files, merge_checkpoint, verify_checkpoint
from ..io.pipelines import Part, is_pipeline, merge_parts, unchanged_folders
from ..io.rounding import RoundingLoss, rounding_losses
from ._adapters import at_rank, dropped, load_from_options
from ._merge_tables import losses_text, merged_text, values_of
from ._options import ADAPTER, add_alpha, add_base_is_residual, add_drop, add_task, positive
from ._output import add_output, new_output
from ._text import counted, plain, printable
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
        help="the checkpoint: a safetensors file, a folder with model.safetensors or with shards and their index, or the "
        "folder of a diffusers pipeline",
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
    names = None if is_pipeline(base) else base
    adapter = at_rank(load_from_options(arguments.adapter, arguments, base=names), arguments.rank, arguments.adapter)
    transposed = arguments.fan_in_fan_out
    if transposed is None:
        transposed = bool(adapter.config.get("fan_in_fan_out"))
    options = {"subtract": subtract, "fan_in_fan_out": transposed, "untie": arguments.untie}
    parts = merge_parts(base, adapter)
    is_folder = os.path.isdir(base) or base.endswith(".json")
    _check_output_is_not_base(parts, output, is_folder)
    with new_output(output, folder=is_folder, force=arguments.force) as place:
        with _bar(sum(os.path.getsize(file) for file, _ in _files(parts))) as progress:
            merged = _for_each(parts, place, partial(_merge, threads=arguments.threads, progress=progress, **options))
        if arguments.verify:
            merged = _for_each(parts, place, partial(verify_checkpoint, **options))
            _check_errors(merged, output)
        skipped = _complete(arguments, parts, adapter, place, merged)
        losses = _losses(parts, place, **options) if arguments.report else None
    for name in skipped:
        print(
            f"lora-np: {printable(arguments.base)}: not copied: {printable(name)}, weights before the merge",
            file=sys.stderr,
        )
    if arguments.json:
        values = {"base": arguments.base, "adapter": arguments.adapter, "output": output, "dropped": dropped(adapter)}
        more = {} if losses is None else {"losses": plain([asdict(loss) | {"share": loss.share} for loss in losses])}
        print_json(values | {"tensors": values_of(merged)} | more)
    else:
        print(merged_text(merged, several=len(_files(parts)) > 1) if losses is None else losses_text(losses))
        print(f"\n{output}: {counted(len(merged), 'tensor')} changed{', all verified' if arguments.verify else ''}")
    return 0


def _files(parts: list[Part]) -> list[tuple[str, str]]:
    """The files to merge, and their names within the result."""
    files = [(name, file, part) for part in parts for name, file in checkpoint_files(part.base).items()]
    return [(file, os.path.join(part.folder, name)) for name, file, part in files]


def _for_each(
    parts: list[Part], result: str, act: Callable[[str, AdapterWeights, str], list[MergedTensor]]
) -> list[MergedTensor]:
    return [part.of_result(tensor) for part in parts for tensor in act(part.base, part.adapter, part.within(result))]


def _merge(
    base: str, adapter: AdapterWeights, output: str, *, progress: Listener | None, threads: int | None, **options: bool
) -> list[MergedTensor]:
    os.makedirs(os.path.dirname(output), exist_ok=True)
    return merge_checkpoint(base, adapter, output, **options, threads=threads, progress=progress)


def _losses(parts: list[Part], result: str, **options: bool) -> list[RoundingLoss]:
    return [
        replace(loss, key=os.path.join(part.folder, loss.key))
        for part in parts
        for loss in rounding_losses(part.base, part.adapter, part.within(result), **options)
    ]


def _complete(
    arguments: argparse.Namespace, parts: list[Part], adapter: AdapterWeights, folder: str, merged: list[MergedTensor]
) -> list[str]:
    """Copy the other files of a base's folder; the result is the weights in other formats, which are not copied."""
    if arguments.weights_only or not os.path.isdir(arguments.base):
        return []
    untied = arguments.untie and any(_module(tensor.key) in HEADS for tensor in merged)
    copied = copy_model_files(
        arguments.base,
        folder,
        untied=untied,
        vocab_size=_vocabulary(adapter),
        weights_of=unchanged_folders(arguments.base, parts),
    )
    return [name for name in copied.skipped if not os.path.exists(os.path.join(folder, name))]


def _vocabulary(adapter: AdapterWeights) -> int | None:
    """The number of tokens of the embedding and the head that an adapter has, which may be resized."""
    sizes = {tensor.shape[0] for key, tensor in adapter.whole.items() if _module(key) in (*EMBEDDINGS, *HEADS)}
    return sizes.pop() if len(sizes) == 1 else None


def _module(key: str) -> str:
    return key.rpartition(".")[0].rpartition(".")[2]


def _check_output_is_not_base(parts: list[Part], output: str, is_folder: bool) -> None:
    for file, name in _files(parts):
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
