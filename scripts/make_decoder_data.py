"""Make tests/models/data/decoders: tiny decoders saved by transformers, and what torch computes with them in float64.

The files are part of the repository; this script documents their origin. It requires torch and transformers, which lora_np
does not depend on. All weights are random numbers from a fixed seed. Two runs on one machine produce identical files.

    python -m pip install torch==2.13.0 transformers==5.24.0
    python scripts/make_decoder_data.py
"""

import inspect
import shutil
import sys
import types
from pathlib import Path

try:
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig
    from transformers.models.llama import modeling_llama
except ModuleNotFoundError as error:
    packages = "torch==2.13.0 transformers==5.24.0"
    sys.exit(f"This script requires torch and transformers ({error}): python -m pip install {packages}")

TARGET = Path(__file__).parents[1] / "tests" / "models" / "data" / "decoders"
VOCABULARY, SIZE, INNER, POSITIONS = 50, 12, 20, 16
GPT2 = GPT2Config(
    vocab_size=VOCABULARY,
    n_embd=SIZE,
    n_layer=2,
    n_head=3,
    n_inner=INNER,
    n_positions=POSITIONS,
    layer_norm_epsilon=1e-3,  # large, so that its place in the formula matters
    bos_token_id=None,
    eos_token_id=None,
)
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,  # not hidden_size / num_attention_heads
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},  # small, so that every pair turns
    "bos_token_id": None,
    "eos_token_id": None,
}
LENGTHS = [10, 4, 1, 7]
NEW_TOKENS = 6
STEPS = 10


def in_float64(module: types.ModuleType) -> types.ModuleType:
    """A copy of a module of transformers that computes rotary positions, RMSNorm and softmax in float64, not in float32."""
    source = inspect.getsource(module)
    for single, double in {
        "torch.float32": "torch.float64",
        "=torch.float)": "=torch.float64)",
        ".float()": ".double()",
    }.items():
        assert single in source
        source = source.replace(single, double)
    twin = types.ModuleType(module.__name__)
    twin.__package__ = module.__package__
    exec(compile(source, module.__file__, "exec"), vars(twin))
    return twin


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Values large enough that every array matters: the initial ones are close to 0, or exactly 0 or 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.7 if parameter.ndim == 2 else 0.3
            is_norm = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(size * torch.randn(parameter.shape) + is_norm)
    return model.eval()


def random_ids() -> torch.Tensor:
    ids = torch.full((len(LENGTHS), max(LENGTHS)), -1)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[:length] = torch.randint(0, VOCABULARY, (length,))
    ids[1, :2] = ids[0, 0]  # a token in two sentences, and twice in one of them
    return ids


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The logits (B, T, V) for ids (B, T), padded at the end with -1: no token sees the ones after it, nor padding."""
    return model(ids.clamp(min=0), use_cache=False).logits


def gradients(model: torch.nn.Module, directions: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of each array: vectors in full, matrices (m, n) as their product with directions (n, 2)."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[f"gradient.{name}"] = gradient if gradient.ndim == 1 else gradient @ directions[gradient.shape[1]].double()
    return found


def one_pass(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, the loss of the next token, and its gradients. Of most logits, products with four directions are stored."""
    logits = logits_of(model, ids)
    projection, tokens = torch.randn(VOCABULARY, 4), ids >= 0
    last = torch.stack([row[length - 1] for row, length in zip(logits, LENGTHS, strict=True)])
    results = {"projection": projection, "projected": logits[tokens] @ projection.double(), "last": last}
    loss = next_token_loss(logits, ids)
    loss.backward()
    widths = {parameter.shape[1] for parameter in model.parameters() if parameter.ndim == 2}
    directions = {width: torch.randn(width, 2) for width in sorted(widths)}
    results |= {"loss": loss} | {f"directions.{width}": d for width, d in directions.items()}
    return results | gradients(model, directions)


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood of each token but the first of a sentence."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1), ignore_index=-1
    )


def greedy(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The tokens that follow each sentence, each time the most likely one, recomputed from scratch."""
    found = []
    with torch.no_grad():
        for row, length in zip(ids, LENGTHS, strict=True):
            tokens = row[:length].tolist()
            for _ in range(NEW_TOKENS):
                tokens.append(int(logits_of(model, torch.tensor([tokens]))[0, -1].argmax()))
            found.append(tokens[length:])
    return torch.tensor(found)


def training(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The losses of ten steps of AdamW, with all arrays training."""
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = next_token_loss(logits_of(model, ids), ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses)}


def make(name: str, kind: type, config: GPT2Config | LlamaConfig) -> None:
    """Save a tiny model and its golden numbers."""
    config._attn_implementation = "eager"
    model, ids = randomised(kind(config)), random_ids()
    model.save_pretrained(TARGET / name)
    (TARGET / name / "generation_config.json").unlink(missing_ok=True)

    def fresh() -> torch.nn.Module:
        copy = kind(config).double().eval()
        copy.load_state_dict(model.state_dict())
        return copy

    golden = {"ids": ids, "greedy": greedy(fresh(), ids)} | one_pass(fresh(), ids) | training(fresh(), ids)
    tensors = {key: tensor.detach().contiguous() for key, tensor in golden.items()}
    save_file(tensors, TARGET / name / "golden.safetensors")


def main() -> None:
    torch.manual_seed(20240301)
    shutil.rmtree(TARGET, ignore_errors=True)
    llama = in_float64(modeling_llama).LlamaForCausalLM
    make("gpt2", GPT2LMHeadModel, GPT2)
    make("llama", llama, LlamaConfig(**LLAMA, tie_word_embeddings=False))
    make("llama-tied", llama, LlamaConfig(**LLAMA, tie_word_embeddings=True))
    for file in TARGET.rglob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()
