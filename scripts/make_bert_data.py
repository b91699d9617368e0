"""Make tests/models/data: a tiny BERT saved by transformers, and the results that torch computes with it in float64.

The files are part of the repository; this script documents their origin. It requires torch, transformers and PEFT, which
lora_np does not depend on. The weights of the tiny model are random numbers from a fixed seed. Of all-MiniLM-L6-v2, only 32
numbers of its output for four sentences are stored, with the token ids. Two runs on one machine produce identical files if
the hash seed is fixed, because PEFT writes sets of names in the order of their hashes.

    python -m pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2
    scripts/get_minilm minilm
    PYTHONHASHSEED=0 python scripts/make_bert_data.py minilm
"""

import json
import shutil
import sys
from pathlib import Path

try:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
except ModuleNotFoundError as error:
    packages = "torch==2.13.0 transformers==5.24.0 peft==0.21.2"
    sys.exit(f"This script requires torch, transformers and PEFT ({error}): python -m pip install {packages}")

TARGET = Path(__file__).parents[1] / "tests" / "models" / "data"
CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=12,
    type_vocab_size=2,
    layer_norm_eps=1e-3,  # large, so that its place in the formula matters
)
LENGTHS = [12, 5, 1, 8]
LABELS = [2, 0, 1, 2]
CLASSES = 3
STEPS = 10
SENTENCES = [
    "A cat sat on the mat.",
    "LoRA adapts a pretrained model by adding a product of two small matrices to each of its weights.",
    "Why?",
    "The café's 3.5-metre façade, built in 1887, was repainted yesterday!",
]


def forward(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states (rows, D) of the tokens of a batch of ids (B, T), which is padded with -1."""
    mask = ids >= 0
    return model(ids.clamp(min=0), attention_mask=mask.long()).last_hidden_state[mask]


def mean_of_sentences(rows: torch.Tensor) -> torch.Tensor:
    return torch.stack([sentence.mean(0) for sentence in rows.split(LENGTHS)])


def random_model() -> BertModel:
    """Values large enough that every array matters: the initial ones are close to 0, or exactly 0 or 1."""
    model = BertModel(CONFIG, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 1 if "embeddings.weight" in name else 0.3
            parameter.copy_(size * torch.randn(parameter.shape) + ("LayerNorm.weight" in name))
    return model


def random_ids() -> torch.Tensor:
    ids = torch.full((len(LENGTHS), max(LENGTHS)), -1)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[:length] = torch.randint(1, CONFIG.vocab_size, (length,))  # not 0, for which torch computes no gradient
    ids[1, :2] = ids[0, 0]  # a token in two sentences, and twice in one of them
    return ids


def gradients(model: torch.nn.Module, prefix: str, directions: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of each array that has one: vectors in full, matrices (m, n) as their product with directions (n, 2)."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            key = name.removeprefix("base_model.model.").replace(".default.", ".")
            found[f"{prefix}.{key}"] = gradient if gradient.ndim == 1 else gradient @ directions[gradient.shape[1]].double()
    return found


def one_pass(model: BertModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Hidden states and sentence embeddings, and the gradients of all arrays for a random gradient of the hidden states."""
    hidden = forward(model, ids)
    output_gradient = torch.randn(hidden.shape)
    directions = {size: torch.randn(size, 2) for size in (CONFIG.hidden_size, CONFIG.intermediate_size)}
    hidden.backward(output_gradient.double())
    results = {"hidden": hidden, "embedding": torch.nn.functional.normalize(mean_of_sentences(hidden))}
    results |= {"output_gradient": output_gradient} | {f"directions.{size}": d for size, d in directions.items()}
    return results | gradients(model, "gradient", directions)


def adapted(model: BertModel, ids: torch.Tensor, output_gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Save a random LoRA adapter of PEFT; its hidden states, and the gradients of its factors."""
    adapter = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=["query", "value"]))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) / 2)
    adapter.save_pretrained(TARGET / "adapter")
    (TARGET / "adapter" / "README.md").unlink()
    hidden = forward(adapter.double().eval(), ids)
    hidden.backward(output_gradient.double())
    directions = {size: torch.eye(size) for size in (CONFIG.hidden_size, 2)}  # the factors are small: gradients in full
    return {"adapted.hidden": hidden} | gradients(adapter, "adapted.gradient", directions)


def training(model: BertModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The losses of ten steps of AdamW on a classifier of the sentences' means, with all arrays training."""
    head = torch.nn.Linear(CONFIG.hidden_size, CLASSES)
    results = {f"classifier.{name}": parameter.clone() for name, parameter in head.state_dict().items()}
    head, losses = head.double(), []
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-2, weight_decay=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(mean_of_sentences(forward(model, ids))), torch.tensor(LABELS))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return results | {"labels": torch.tensor(LABELS), "losses": torch.stack(losses)}


def tiny() -> None:
    """The tiny model, its adapter and its golden numbers."""
    model, ids = random_model(), random_ids()
    model.save_pretrained(TARGET / "bert")

    def fresh() -> BertModel:
        copy = BertModel(CONFIG, add_pooling_layer=False).eval()
        copy.load_state_dict(model.state_dict())
        return copy

    golden = {"ids": ids} | one_pass(fresh().double(), ids)
    golden |= adapted(fresh(), ids, golden["output_gradient"]) | training(fresh().double(), ids)
    save_file({name: tensor.detach().contiguous() for name, tensor in golden.items()}, TARGET / "golden.safetensors")


def real(folder: str) -> None:
    """Of each sentence, eight numbers of the hidden state of its last token, [SEP]."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    ids = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    every = model.config.hidden_size // 8
    with torch.no_grad():
        hidden = [model(torch.tensor([row])).last_hidden_state[0, -1, ::every].tolist() for row in ids]
    cases = [{"sentence": s, "ids": i, "hidden": h} for s, i, h in zip(SENTENCES, ids, hidden, strict=True)]
    text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (TARGET / "minilm.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: make_bert_data.py FOLDER (of all-MiniLM-L6-v2; see scripts/get_minilm)")
    torch.manual_seed(20240229)
    for folder in ("bert", "adapter"):
        shutil.rmtree(TARGET / folder, ignore_errors=True)
    tiny()
    real(sys.argv[1])
    for file in TARGET.rglob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()
