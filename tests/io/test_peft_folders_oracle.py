"""Merged folders, where transformers and PEFT are installed: transformers loads them and computes what the adapter does.

`scripts/test_peft` installs them and runs these tests.
"""

import pytest

from lora_np.cli import main

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers, about a name that PEFT uses
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of PEFT, about tied embeddings, which are tested here
]

SIZES = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 16,
}


def llama(tied=False):
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=2, attention_bias=True, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)


def tied_llama():
    return llama(tied=True)


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_hidden_layers=1, num_labels=3))


Q = {"target_modules": ["q_proj"]}
KINDS = {
    "a sequence classifier": (bert, {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}, False),
    "biases of adapted layers": (bert, {"bias": "lora_only", "target_modules": ["query"]}, False),
    "all biases": (bert, {"bias": "all", "target_modules": ["query"]}, False),
    "biases of branches": (bert, {"lora_bias": True, "target_modules": ["query"]}, False),
    "norms": (llama, Q | {"modules_to_save": ["input_layernorm"]}, False),
    "a low-rank embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}, False),
    "tokens": (llama, Q | {"trainable_token_indices": [5, 3]}, False),
    "tokens of embedding and head": (
        llama,
        Q | {"trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [1]}},
        False,
    ),
    "parameters": (llama, {"target_modules": ["v_proj"], "target_parameters": ["mlp.up_proj.weight"]}, False),
    "one block": (llama, Q | {"layers_to_transform": [1]}, False),
    "excluded layers": (llama, {"target_modules": ".*proj", "exclude_modules": ["down_proj"]}, False),
    "a tied low-rank embedding": (tied_llama, {"target_modules": ["embed_tokens", "q_proj"]}, True),
    "a tied low-rank head": (tied_llama, {"target_modules": ["lm_head", "q_proj"]}, True),
    "a tied embedding": (tied_llama, Q | {"modules_to_save": ["embed_tokens"], "task_type": "CAUSAL_LM"}, True),
    "a tied pair that differs": (tied_llama, Q | {"modules_to_save": ["lm_head", "embed_tokens"]}, True),
    "a tied pair": (tied_llama, Q | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
    "tied tokens": (tied_llama, Q | {"trainable_token_indices": [5, 3]}, False),
}
"""A base, the configuration of an adapter, and whether a merge needs ``--untie``."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_folder_computes_what_the_adapter_computes(tmp_path, kind):
    build, config, untie = KINDS[kind]
    torch.manual_seed(0)
    base = build()
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=3, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) / 2)
    model.save_pretrained(tmp_path / "adapter")
    command = ["merge", *(str(tmp_path / name) for name in ("base", "adapter")), "-o", str(tmp_path / "out"), "--verify"]
    assert main(command) == int(untie)
    if untie:
        assert main([*command, "--untie"]) == 0
    merged = type(base).from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[1, 3, 5, 2]])
    with torch.no_grad():
        wanted = model.eval()(ids).logits
        assert (merged(ids).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
