"""Measure what docs/merged-differs.md shows: a LoRA trained on a real encoder, merged in BF16, F16 and F32.

    python scripts/measure_rounding.py MODEL DATA [--rank R] [--rate L]

MODEL and DATA are the folders or wheels that `lora-np demo text` asks for. Everything is written to a temporary folder.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from lora_np import AdamW, SequenceClassifier, SoftmaxCrossEntropy, StandardLoRAAdapter, apply_lora, fit, load_pretrained
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


def trained(model, rows, rank: int, rate: float, epochs: int):
    """A classifier with a LoRA on queries and values, trained on some sentences."""
    classifier = SequenceClassifier(load_pretrained(model), classes=2, rng=0)
    adapted = apply_lora(
        classifier,
        lambda layer: StandardLoRAAdapter(layer, rank, 2 * rank, rng=0),
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


def measure(model: Path, sentences: Path, folder: Path, options: argparse.Namespace) -> None:
    settings = TextSettings()
    task, _ = load_tasks(sentences, Tokenizer(model, settings.max_tokens), settings)
    rows = Rows(*(part[: options.sentences] for part in task.training))
    classifier = trained(model, rows, options.rank, options.rate, options.epochs)
    found = extract(classifier)
    layers = {path.removeprefix(f"{BODY}."): layer for path, layer in found.layers.items()}
    save_peft(folder / "adapter", AdapterWeights(layers))
    head = classifier.children()["classifier"]

    def logits(encoder):
        hidden = SequenceClassifier(encoder, classes=2, rng=0).with_children({"classifier": head})
        return predict_by_length(hidden, task.test.inputs)

    for dtype in ("BF16", "F16", "F32"):
        base, merged = in_dtype(model, folder / dtype, dtype), folder / f"{dtype}-merged"
        print(f"$ lora-np merge {dtype} adapter -o merged --report")
        assert lora_np(["merge", str(base), str(folder / "adapter"), "-o", str(merged), "--report"]) == 0
        alone, beside = logits(load_pretrained(base)), logits(apply_peft(load_pretrained(base), folder / "adapter"))
        inside = logits(load_pretrained(merged))
        effect, gap = np.linalg.norm(beside - alone), np.linalg.norm(inside - beside)
        right = [float((scores.argmax(axis=1) == task.test.labels).mean()) for scores in (alone, beside, inside)]
        different = int((inside.argmax(axis=1) != beside.argmax(axis=1)).sum())
        print(f"{dtype}: logits of {len(beside)} sentences: |merged - unmerged| / |effect of adapter| = {gap / effect:.2e}")
        print(f"largest difference of a logit {np.abs(inside - beside).max():.2e}; other class for {different} sentences")
        print(f"accuracy: base {right[0]:.3f}, unmerged {right[1]:.3f}, merged {right[2]:.3f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=512)
    options = parser.parse_args()
    with (
        ENCODER.open(options.model) as model,
        SENTENCES.open(options.data) as data,
        tempfile.TemporaryDirectory() as folder,
    ):
        measure(model, data, Path(folder), options)


if __name__ == "__main__":
    main()
