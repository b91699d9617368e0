"""``lora-np merge`` and ``lora-np unmerge``: adapters into checkpoints, and out of them."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

from ..adapter_weights import AdapterWeights
from ..errors import ArgumentError, FormatError
from ..io.merge import SINGLE, MergedTensor, checkpoint_files, merge_checkpoint, verify_checkpoint
from ._adapters import add_choice, at_rank, load_adapter, naming
from ._options import positive
from ._output import add_output, new_output
from ._text import counted, plain, printable
from .table import table
from .verb import Verb, add_json, print_json

Listener = Callable[[str, int], None]


def allowed_error(tensor: MergedTensor, rank: int) -> float:
    """The largest relative error that rounding explains: of the dtype, and of the sum of `rank` products before it."""
    return 2 * tensor.precision + (rank + 8) * 2.0 ** (-53 if tensor.dtype == "F64" else -24)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "base",
        metavar="BASE",
        help="the checkpoint: a safetensors file, or a folder with model.safetensors or with shards and their index",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="whatever `lora-np inspect` calls an adapter")
    add_output(
        parser, "the new checkpoint: a file if BASE is one, otherwise a folder; weights only, no other files of BASE"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read OUT again before it gets its name, and compare it with the sum in float64",
    )
    parser.add_argument(
        "--fan-in-fan-out",
        action=argparse.BooleanOptionalAction,
        help="weights are stored as (in, out), as Conv1D of transformers does (default: as the adapter's configuration says)",
    )
    parser.add_argument(
        "--rank",
        type=positive,
        metavar="R",
        help="which active rank to take DyLoRA layers at (default: their deployment rank)",
    )
    add_choice(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace, *, subtract: bool) -> int:
    base = os.path.normpath(arguments.base)
    if not os.path.exists(base):
        raise ArgumentError(f"{base}: there is no such file or folder")
    loaded = load_adapter(arguments.adapter, task=arguments.task, strict=not arguments.lenient)
    adapter = at_rank(loaded, arguments.rank, arguments.adapter)
    fan_in_fan_out = arguments.fan_in_fan_out
    if fan_in_fan_out is None:
        fan_in_fan_out = bool(adapter.config.get("fan_in_fan_out"))
    is_folder = os.path.isdir(base) or base.endswith(".json")
    files = checkpoint_files(base)
    folder, file = (arguments.output, "") if is_folder else os.path.split(arguments.output)
    for name, source in files.items():
        written = os.path.join(folder, file or name)
        if os.path.exists(written) and os.path.samefile(source, written):
            raise ArgumentError(f"{arguments.output}: OUT must be another place than BASE")
    with new_output(arguments.output, folder=is_folder, force=arguments.force) as place:
        # A checkpoint of one file has no index, with which the library would make a folder.
        single = is_folder and list(files) == [SINGLE] and os.path.isfile(os.path.join(base, SINGLE))
        target = place
        if single:
            os.mkdir(place)
            base, target = files[SINGLE], os.path.join(place, SINGLE)
        given = partial(_given, base, adapter, target, subtract, fan_in_fan_out)
        with naming_adapter(arguments.adapter), _bar(sum(map(os.path.getsize, files.values()))) as progress:
            merged = given(progress, False)
        if arguments.verify:
            merged = given(None, True)
            _check(merged, adapter, arguments.output)
    ...
    return 0
