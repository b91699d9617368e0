"""The numbers of the text demo as text."""

import math
from collections.abc import Sequence
from pathlib import Path

from ..terminal.table import table
from .report import cost, percent, section
from .text_data import Task
from .text_ranks import TextRankResult
from .text_settings import TextSettings
from .text_tasks import TextSharingResult
from .training import Score


def encoder_text(parameters: int, tasks: Sequence[Task], settings: TextSettings, seconds: float) -> str:
    """The encoder and the sentences."""
    rows = [
        [task.name, " / ".join(task.classes), f"{len(task.training.labels):,}", f"{len(task.test.labels):,}"]
        for task in tasks
    ]
    return section(
        "Encoder: pretrained, frozen",
        f"{parameters:,} parameters. The last {settings.blocks} blocks get adapters; "
        "the blocks below ran once on each sentence.\n"
        f"This, and training a head for each task on the unchanged encoder, took {seconds:.1f} s.",
        table(["task", "classes", "training sentences", "test sentences"], rows, left=2),
        "sentiment: film reviews with human ratings, Hutto and Gilbert (2014), MIT licence.\n"
        "spam: SMS Spam Collection, UCI Machine Learning Repository, CC BY 4.0.",
    )


def ranks_text(result: TextRankResult) -> str:
    """DyLoRA compared with the other ways to obtain an adapter at every rank."""
    header = [f"rank {rank}" for rank in result.ranks]
    alone = [result.head] * len(result.ranks)
    losses = [["head only", *(f"{s.nll:.3f}" for s in alone), "", ""]]
    losses += [[curve.method, *(f"{s.nll:.3f}" for s in curve.scores), *cost(curve)] for curve in result.curves]
    accuracies = [["head only", *(percent(s.accuracy) for s in alone)]]
    accuracies += [[curve.method, *(percent(s.accuracy) for s in curve.scores)] for curve in result.curves]
    return section(
        "DyLoRA: one training run for all ranks",
        f"Adapters on query, value and both feed-forward layers learn {result.task}, together with the head, from\n"
        f"{result.training_rows:,} sentences, each seen once. NLL is the mean negative log-likelihood of "
        f"{result.test_rows:,} others.\n"
        f"'Truncated' keeps the leading components of the rank-{result.ranks[-1]} LoRA.\n"
        "'Truncated by SVD' keeps its best approximation of each rank.",
        table(["NLL", *header, "training runs", "seconds"], losses),
        table(["accuracy", *header], accuracies),
        "\n".join(verdict(result)),
    )


def verdict(result: TextRankResult) -> list[str]:
    """What the measured numbers show, whether or not it favours DyLoRA."""
    alone = [result.head] * len(result.ranks)
    rivals = {"the head alone": alone, **{curve.method: curve.scores for curve in result.curves[1:]}}
    p = result.head.accuracy
    return [
        *(f"NLL of DyLoRA below that of {name}: {_where(result, scores)}." for name, scores in rivals.items()),
        f"With {result.test_rows:,} test sentences, the standard error of an accuracy is about "
        f"{100 * math.sqrt(p * (1 - p) / result.test_rows):.1f} points.",
    ]


def _where(result: TextRankResult, rivals: Sequence[Score]) -> str:
    """The ranks at which DyLoRA has the lower negative log-likelihood."""
    pairs = zip(result.ranks, result.dylora.scores, rivals, strict=True)
    better = [str(rank) for rank, own, rival in pairs if own.nll < rival.nll]
    return f"at rank {', '.join(better)}" if better else "at no rank"


def sharing_text(result: TextSharingResult) -> str:
    """Several tasks on one encoder."""
    rows = [
        [
            task.task,
            percent(task.majority),
            percent(task.head.accuracy),
            percent(task.score.accuracy),
            f"{task.head.nll:.3f}",
            f"{task.score.nll:.3f}",
        ]
        for task in result.tasks
    ]
    return section(
        "MultiLoRA: two tasks on one encoder",
        f"Rank-{result.rank} adapters and a separate head for each task, trained on mixed batches of "
        f"{result.training_rows:,} sentences\n"
        f"in {result.seconds:.1f} s. Each sentence passes through the branches of its task.",
        table(["task", "majority class", "head only", "MultiLoRA", "head only NLL", "MultiLoRA NLL"], rows),
        f"The logits of {result.mixed_rows:,} test sentences in mixed batches match those of separate passes "
        f"to {result.mixed_difference:.1e}.",
    )


def files_text(directory: Path, files: Sequence[str], *, missing_figures: bool) -> str:
    """What was written, and how to use it."""
    lines = [f"Written to {directory}: {', '.join(files)}"]
    lines.append(f'Classify your own sentences: lora-np classify {directory} --rank 2 "What a wonderful film!"')
    if missing_figures:
        lines.append('No figure, because matplotlib is not installed; to install it: pip install "lora_np[plot]"')
    return "\n".join(lines)
