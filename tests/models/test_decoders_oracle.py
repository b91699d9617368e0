"""transformers and PEFT, where they are installed: the same logits, gradients, tokens and adapters of decoders.

`scripts/test_transformers` installs them and runs these tests. The weights are random. transformers' Llama computes rotary
positions, RMSNorm and softmax in float32 whatever the dtype, so a copy of its module that does not is the oracle.
"""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lora_np import (
    DyLoRAAdapter,
    MultiLoRAAdapter,
    StandardLoRAAdapter,
    apply_lora,
    generate,
    load_pretrained,
    merge_in_place,
)
from lora_np.io.peft import apply_peft, save_peft
from tests.models.test_transformers_oracle import assert_close, assert_same_gradients, our_name, randomised, read_by_peft

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_decoder_data.py"
VOCABULARY, POSITIONS = 97, 64
LENGTHS = {"ragged": [9, 25, 1, 17], "full": [16, 16, 16], "one": [12]}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": POSITIONS,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", LLAMA | {"tie_word_embeddings": False}),
    "llama, tied, one key-value head": ("Llama", LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, large heads": ("Llama", LLAMA | {"head_dim": 12, "num_key_value_heads": 6}),
}
TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "v_proj", "gate_proj", "down_proj"]}


def script():
    """The script that made the golden numbers, as a module."""
    spec = importlib.util.spec_from_file_location("make_decoder_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE_BY = script()


def batch(lengths):
    """Random ids, padded with -1."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (len(lengths), max(lengths)))
    ids[np.arange(max(lengths)) >= np.array(lengths)[:, np.newaxis]] = -1
    return ids


RAGGED = batch(LENGTHS["ragged"])


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """Their model in float64, with random weights, and the folder that it is saved in."""
    kind, entries = MODELS[request.param]
    if kind == "GPT2":
        build, config = transformers.GPT2LMHeadModel, transformers.GPT2Config(**entries)
    else:
        build = MADE_BY.in_float64(transformers.models.llama.modeling_llama).LlamaForCausalLM
        config = transformers.LlamaConfig(**entries)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = MADE_BY.randomised(build(config)).double()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, folder, TARGETS[kind.lower()]


@pytest.fixture
def theirs(saved):
    return copy.deepcopy(saved[0])


@pytest.fixture
def ours(saved):
    return load_pretrained(saved[1], dtype=np.float64)


@pytest.fixture
def targets(saved):
    return saved[2]


def run(model, ids, **options):
    """Their logits, (B, T, V), with those at padding set to zero."""
    tokens = torch.from_numpy(ids >= 0)
    return model(torch.from_numpy(ids).clamp(min=0), use_cache=False, **options).logits * tokens[:, :, None]


def logits_of(model, ids=RAGGED):
    with torch.no_grad():
        return run(model, ids).numpy()


# ---------------------------------------------------------------- the decoder


@pytest.mark.parametrize("case", LENGTHS)
def test_logits_and_gradients_of_all_arrays(case, ours, theirs):
    ids = batch(LENGTHS[case])
    dy = np.random.default_rng(1).normal(size=(*ids.shape, VOCABULARY))
    logits = run(theirs, ids)
    assert_close(ours.forward(ids), logits.detach(), 1e-13, "logits")
    logits.backward(torch.from_numpy(dy))
    ours.backward(dy)
    wanted = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    assert set(wanted) == set(ours.gradients)
    assert_same_gradients(ours.gradients, wanted, 1e-11)


def test_logits_in_float32(saved, theirs):
    """As precise as torch: the weights are large, so both are less precise than for a trained model."""
    wanted = logits_of(theirs)
    precision = np.abs(logits_of(theirs.float()) - wanted).max() / np.abs(wanted).max()
    print(f"their logits in float32: {precision:.1e}", end="; ")
    assert_close(load_pretrained(saved[1]).predict(RAGGED), wanted, 3 * precision, "logits")


def test_24_greedy_tokens(ours, theirs):
    tokens = np.stack([*generate(ours, RAGGED, 24)], axis=1)
    for row, prompt in zip(tokens, RAGGED, strict=True):
        ids = torch.from_numpy(prompt[prompt >= 0])[None]
        options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        assert row.tolist() == theirs.generate(ids, **options)[0, ids.shape[1] :].tolist()
    assert len(np.unique(tokens)) > 10


# ---------------------------------------------------------------- adapters


def assert_same_adapters(model, their_model, **options):
    """The logits, and the gradients of the adapters' arrays."""
    tasks = options.get("tasks")
    names = {} if tasks is None else {"adapter_names": [task or "__base__" for task in tasks]}
    logits = run(their_model, RAGGED, **names)
    dy = np.random.default_rng(1).normal(size=logits.shape)
    logits.backward(torch.from_numpy(dy))
    assert_close(model.forward(RAGGED, tasks=tasks), logits.detach(), 1e-13, "logits")
    model.backward(dy)
    wanted = {
        our_name(name, tasks): parameter.grad.numpy().T
        for name, parameter in their_model.named_parameters()
        if parameter.requires_grad
    }
    assert set(wanted) == set(model.gradients)
    assert_same_gradients(model.gradients, wanted)


def adapted(model, kind, targets, **choices):
    """A model with adapters of random values."""
    model, random = apply_lora(model, kind, targets=targets, rng=0, **choices), np.random.default_rng(0)
    for name, array in model.named_parameters().items():
        model.set_parameter(name, random.normal(size=array.shape) / 8)
    return model


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_writes(tmp_path, rslora, ours, theirs, targets):
    config = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=rslora, target_modules=targets)
    their_model = randomised(peft.get_peft_model(theirs, config))
    their_model.save_pretrained(tmp_path)
    model = apply_peft(ours, tmp_path)
    assert_same_adapters(model, their_model)
    merge_in_place(model)
    merged = their_model.merge_and_unload()
    state = merged.state_dict()
    for name, array in model.named_parameters(frozen=True).items():
        np.testing.assert_allclose(array, state[name].numpy(), rtol=0, atol=1e-13)
    assert_close(model.predict(RAGGED), logits_of(merged), 1e-13, "logits")


def test_an_adapter_that_peft_reads(tmp_path, ours, theirs, targets):
    model = adapted(ours, StandardLoRAAdapter, targets, rank=3, alpha=5.0)
    save_peft(tmp_path, model)
    assert_same_adapters(model, read_by_peft(theirs, tmp_path))


@pytest.mark.parametrize("rank", [1, 4])
def test_dylora_at_a_rank_that_peft_reads(tmp_path, rank, ours, theirs, targets):
    model = adapted(ours, DyLoRAAdapter, targets, max_rank=4, active_ranks=[1, 4])
    save_peft(tmp_path, model, rank=rank)
    assert_close(model.predict(RAGGED, rank=rank), logits_of(read_by_peft(theirs, tmp_path)), 1e-13, "logits")


def test_tasks_of_prompts_that_peft_reads(tmp_path, ours, theirs, targets):
    def multilora(linear):
        adapter = MultiLoRAAdapter(linear, "first", 2, 3.0, rng=0)
        adapter.add_task("second", 4)
        return adapter

    model = apply_lora(ours, multilora, targets=targets)
    random = np.random.default_rng(0)
    for name, array in model.named_parameters().items():
        model.set_parameter(name, random.normal(size=array.shape) / 8)
    save_peft(tmp_path, model)
    their_model = read_by_peft(theirs, tmp_path / "first", "first")
    their_model.load_adapter(tmp_path / "second", "second")
    for name, parameter in their_model.named_parameters():
        parameter.requires_grad = "lora_" in name
    assert_same_adapters(model, their_model.eval(), tasks=["second", None, "second", "first"])
