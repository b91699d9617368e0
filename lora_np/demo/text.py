"""The text demo from start to finish: adapt a pretrained encoder to real sentences, measure, report, and write files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from .._archive import atomic_file
from ..base import Layer
from ..io.npz import load_layer, save_layer
from ..io.pretrained import load_encoder
from ..models.bert import BertModel
from ..models.heads import BODY, HEAD, SequenceClassifier
from ..terminal.progress import bar
from ..text import FILE as TOKENIZER
from ..text import Tokenizer
from . import text_report as report
from .checks import Check
from .digits import Rows
from .report import checks_text
from .text_data import Task, load_tasks
from .text_encoder import upper_of
from .text_ranks import TextRankResult, compare_ranks
from .text_settings import TextSettings
from .text_tasks import TextSharingResult, share_encoder
from .text_training import prepare
from .training import largest_difference

CLASSIFIER, LABELS = "classifier.npz", "labels.json"
"""The files that ``lora-np classify`` reads, besides that of the tokenizer."""
ROUNDING = 1e-3
"""The largest difference of a logit that float32 rounding may cause when sums are formed in a different order."""
COMPARED = 32
"""The number of test sentences on which saved models are compared."""


@dataclass(frozen=True)
class TextResults:
    """The numbers of the text demo, and the names of the files that it wrote."""

    settings: TextSettings
    encoder_parameters: int
    preparation_seconds: float
    ranks: TextRankResult
    sharing: TextSharingResult
    checks: tuple[Check, ...]
    files: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """All fields and derived values, for the json module."""
        values = {"ok": self.ok, **asdict(self)}
        values["checks"] = [asdict(check) | {"ok": check.ok} for check in self.checks]
        return values


def run(
    settings: TextSettings,
    model: Path,
    data: Path,
    directory: Path,
    *,
    plots: bool,
    say: Callable[[str], None],
) -> TextResults:
    """Run the text demo.

    Parameters
    ----------
    settings : TextSettings
    model : path
        The folder of a pretrained BERT and its tokenizer.
    data : path
        The folder of the sentences; see `load_tasks`.
    directory : path
        An existing directory, for the trained classifier and the figure.
    plots : bool
        Whether to save a figure, if matplotlib is installed.
    say : callable
        Called with each section of the report as soon as its numbers are known.

    Returns
    -------
    TextResults
    """
    start = perf_counter()
    encoder = load_encoder(model)
    tasks = load_tasks(data, Tokenizer(model, settings.max_tokens), settings)
    upper, prepared = prepare(encoder, tasks, settings)
    seconds = perf_counter() - start
    size = sum(array.size for array in encoder.named_parameters(frozen=True).values())
    say(report.encoder_text(size, tasks, settings, seconds))
    ranks, dylora = compare_ranks(upper, prepared[0], settings, bar)
    say(report.ranks_text(ranks))
    sharing = share_encoder(upper, prepared, settings, bar)
    say(report.sharing_text(sharing))
    whole = on_encoder(dylora, encoder)
    saved = _save(whole, tasks[0], model, directory)
    checks = _checks(sharing, dylora, whole, tasks[0].test, prepared[0].task.test, directory)
    say(checks_text(checks))
    figures = _plot(directory, ranks) if plots else []
    files = (*saved, *figures)
    say(report.files_text(directory, files, missing_figures=plots and not figures))
    return TextResults(settings, size, seconds, ranks, sharing, tuple(checks), files)


def on_encoder(model: Layer, encoder: BertModel) -> SequenceClassifier:
    """A classifier of token ids, with the adapted blocks and the head of a model on the upper blocks."""
    children = model.children()
    whole = encoder.with_children(upper_of(children[BODY]))
    head = children[HEAD]
    return SequenceClassifier(whole, head.output_size, rng=0).with_children({HEAD: head})


def _save(model: SequenceClassifier, task: Task, source: Path, directory: Path) -> list[str]:
    """Save a classifier, its tokenizer and the names of its classes, as ``lora-np classify`` reads them."""
    save_layer(model, directory / CLASSIFIER)
    with atomic_file(directory / TOKENIZER) as file, (source / TOKENIZER).open("rb") as original:
        shutil.copyfileobj(original, file)
    with atomic_file(directory / LABELS) as file:
        file.write(json.dumps(task.classes).encode())
    return [CLASSIFIER, TOKENIZER, LABELS]


def _checks(
    sharing: TextSharingResult, upper: Layer, whole: Layer, sentences: Rows, numbered: Rows, directory: Path
) -> list[Check]:
    """What must hold regardless of how well the models are trained."""
    logits = whole.predict(sentences.inputs[:COMPARED])
    reloaded = load_layer(directory / CLASSIFIER).predict(sentences.inputs[:COMPARED])
    on_table = upper.predict(numbered.inputs[:COMPARED])
    return [
        Check("mixed batches vs. one pass per task", sharing.mixed_difference, ROUNDING),
        Check("whole encoder vs. its upper blocks", largest_difference(logits, on_table), ROUNDING),
        Check(f"{CLASSIFIER}: reloaded vs. saved", largest_difference(reloaded, logits), 0),
    ]


def _plot(directory: Path, ranks: TextRankResult) -> list[str]:
    """Save the figure and return its name; nothing if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return []
    from . import text_pictures

    return text_pictures.save(directory, ranks)
