"""PEFT itself, where it is installed: what either writes the other reads, with the same outputs, gradients and merges.

`scripts/test_peft` installs it and runs these tests.
"""

import numpy as np
import pytest

from lora_np import DoRAAdapter, StandardLoRAAdapter, apply_lora, load_pretrained, merge_in_place, select_task
from lora_np.io.merge import merge_checkpoint
from lora_np.io.peft import WEIGHTS, apply_peft, load_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.io.networks import (
    BASE,
    DATA,
    DY,
    FACTORIES,
    IDS,
    TEXT_BASE,
    TEXT_CASES,
    X,
    adapted,
    assert_close,
    multilora,
    network,
    text_network,
)
from tests.io.test_peft import TARGETS

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.oracle

CONFIGS = {
    "lora": {"r": 2, "lora_alpha": 3},
    "defaults": {},
    "rslora": {"r": 2, "lora_alpha": 3, "use_rslora": True},
    "patterns": {"r": 2, "lora_alpha": 3, "rank_pattern": {"up": 3}, "alpha_pattern": {"^head": 5}},
    "the first pattern of two": {"r": 2, "rank_pattern": {"body.*": 4, "up": 1}, "alpha_pattern": {".*": 5, "up": 1}},
    "rslora with patterns": {"r": 2, "rank_pattern": {"up": 4}, "alpha_pattern": {"up": 5}, "use_rslora": True},
    "dora": {"r": 2, "lora_alpha": 3, "use_dora": True},
    "dora with rslora": {"r": 3, "lora_alpha": 1, "use_dora": True, "use_rslora": True},
    "a rank above the sizes": {"r": 9, "lora_alpha": 3},
    "one layer": {"r": 2, "target_modules": ["head"]},
    "a pattern of targets": {"r": 2, "target_modules": r"bo.*\.up"},
}
SEEDS = range(3)


def theirs():
    """The base network in torch, with the weights of `network`."""
    linear = torch.nn.Linear
    body = torch.nn.Sequential()
    body.add_module("up", linear(6, 5))
    body.add_module("tanh", torch.nn.Tanh())
    net = torch.nn.Sequential()
    net.add_module("body", body)
    net.add_module("head", linear(5, 4))
    net.load_state_dict({name: torch.from_numpy(array) for name, array in load_safetensors(BASE).items()})
    return net


def ours():
    return network(dtype=np.float32)


def randomise(model, seed):
    """Values for the adapters of PEFT, which are initially zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


def written_by_peft(folder, config, seed):
    """A model of PEFT's, saved to a folder."""
    arguments = {"target_modules": ["up", "head"]} | CONFIGS[config]
    model = peft.get_peft_model(theirs(), peft.LoraConfig(**arguments))
    randomise(model, seed)
    model.save_pretrained(folder)
    return model


def read_by_peft(folder, name="default"):
    return peft.PeftModel.from_pretrained(theirs(), folder, adapter_name=name, is_trainable=True)


def assert_same_output(model, their_model):
    with torch.no_grad():
        assert_close(model.predict(X), their_model(torch.from_numpy(X)).numpy())


def assert_same_gradients(model, their_model):
    for adapter in model.walk().values():
        if isinstance(adapter, DoRAAdapter):
            adapter.norm_gradient = False  # as PEFT has it
    model.forward(X)
    their_x = torch.from_numpy(X).clone().requires_grad_()
    their_model(their_x).backward(torch.from_numpy(DY))
    assert_close(model.backward(DY), their_x.grad.numpy())
    names = {"lora_A": "lora.matrix_a", "lora_B": "lora.matrix_b", "lora_magnitude_vector": "magnitude"}
    gradients = {}
    for name, parameter in their_model.named_parameters():
        if parameter.requires_grad:
            path, kind = name.removeprefix("base_model.model.").split(".lora_", 1)
            gradients[f"{path}.{names['lora_' + kind.split('.')[0]]}"] = parameter.grad.numpy().T
    assert set(gradients) == set(model.gradients)
    for name, gradient in gradients.items():
        assert_close(model.gradients[name], gradient)


def assert_same_merge(model, their_model, folder):
    """Models merged layer by layer, and a checkpoint merged tensor by tensor."""
    merged = {name: tensor.numpy() for name, tensor in their_model.merge_and_unload().state_dict().items()}
    merge_checkpoint(BASE, load_peft(folder), folder / "merged.safetensors")
    checkpoint = load_safetensors(folder / "merged.safetensors")
    merge_in_place(model)
    arrays = model.named_parameters(frozen=True)
    assert set(checkpoint) == set(merged) == set(arrays)
    for name, array in merged.items():
        assert_close(checkpoint[name], array)
        assert_close(arrays[name], array)


def assert_same(folder, model, their_model):
    assert_same_output(model, their_model)
    assert_same_gradients(model, their_model)
    assert_same_merge(model, their_model, folder)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("config", CONFIGS)
def test_what_peft_writes(tmp_path, config, seed):
    their_model = written_by_peft(tmp_path, config, seed)
    assert_same(tmp_path, apply_peft(ours(), tmp_path), their_model)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [kind for kind in FACTORIES if not kind.startswith("dylora")])
def test_what_peft_reads(tmp_path, kind, seed):
    model = adapted(FACTORIES[kind], dtype=np.float32, seed=seed)
    save_peft(tmp_path, model)
    assert_same(tmp_path, model, read_by_peft(tmp_path))


def test_peft_reads_layers_of_different_ranks_and_alphas(tmp_path):
    model = adapted(FACTORIES["standard"], FACTORIES["rslora"], dtype=np.float32)
    save_peft(tmp_path, model)
    assert_same(tmp_path, model, read_by_peft(tmp_path))


@pytest.mark.parametrize("rank", [1, 2, 4, None])
@pytest.mark.parametrize("kind", [kind for kind in FACTORIES if kind.startswith("dylora")])
def test_peft_reads_dylora_at_a_rank_or_whole(tmp_path, kind, rank):
    model = adapted(FACTORIES[kind], dtype=np.float32)
    for path in ("body.up", "head"):
        model.walk()[path].current_deployment_rank = rank or 4
    save_peft(tmp_path, model, rank=rank)
    their_model = read_by_peft(tmp_path)
    assert_same_output(model, their_model)
    assert_same_merge(model, their_model, tmp_path)


def test_what_peft_reads_it_writes_again(tmp_path):
    save_peft(tmp_path / "ours", adapted(FACTORIES["dora"], dtype=np.float32))
    read_by_peft(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    first, second = (load_safetensors(tmp_path / name / WEIGHTS) for name in ("ours", "theirs"))
    assert set(first) == set(second)
    for name, array in first.items():
        assert np.array_equal(second[name], array)


def test_tasks_that_peft_writes(tmp_path):
    their_model = peft.get_peft_model(theirs(), peft.LoraConfig(r=2, target_modules=["up", "head"]), adapter_name="french")
    their_model.add_adapter("german", peft.LoraConfig(r=1, lora_alpha=5, target_modules=["head"]))
    randomise(their_model, 0)
    their_model.save_pretrained(tmp_path)
    assert_same_tasks(apply_peft(ours(), tmp_path), their_model)


def test_tasks_that_peft_reads(tmp_path):
    model = adapted(multilora, dtype=np.float32)
    save_peft(tmp_path, model)
    their_model = read_by_peft(tmp_path / "french", "french")
    their_model.load_adapter(tmp_path / "german", "german")
    assert_same_tasks(model, their_model)


def assert_same_tasks(model, their_model):
    for task in ("french", "german"):
        select_task(model, task)
        their_model.set_adapter(task)
        assert_same_output(model, their_model)


def test_a_merge_into_weights_stored_as_in_out(tmp_path):
    layers = pytest.importorskip("transformers.pytorch_utils")
    net = torch.nn.Sequential(layers.Conv1D(4, 6))
    save_safetensors(tmp_path / "base.safetensors", {name: tensor.numpy() for name, tensor in net.state_dict().items()})
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], fan_in_fan_out=True)
    their_model = peft.get_peft_model(net, config)
    randomise(their_model, 0)
    their_model.save_pretrained(tmp_path)
    output = tmp_path / "merged.safetensors"
    merge_checkpoint(tmp_path / "base.safetensors", load_peft(tmp_path), output, fan_in_fan_out=True)
    merged = their_model.merge_and_unload().state_dict()
    for name, array in load_safetensors(output).items():
        assert_close(array, merged[name].numpy())


def is_allowed(entries):
    """Whether PEFT accepts the configuration, and names layers by modules."""
    return isinstance(entries.get("target_modules"), list) and "target_parameters" not in entries


@pytest.mark.parametrize(("entries", "path", "named"), [target for target in TARGETS if is_allowed(target[0])])
def test_the_names_of_layers_mean_what_they_mean_in_peft(entries, path, named):
    module = pytest.importorskip("peft.tuners.tuners_utils")
    assert bool(module.check_target_module_exists(peft.LoraConfig(**entries), path)) == named


# ---------------------------------------------------------------- whole tensors


class TheirText(torch.nn.Module):
    """The text network in torch, with the weights of `text_network`."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = torch.nn.Embedding(9, 6), torch.nn.LayerNorm(6)
        self.body, self.head = theirs().body, torch.nn.Linear(5, 4)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in load_safetensors(TEXT_BASE).items()})

    def forward(self, ids):
        return self.head(self.body(self.norm(self.table(ids))))


def text_adapter(case):
    """A model with an adapter of PEFT's, with other values of all that trains."""
    model = apply_peft(text_network(dtype=np.float32), DATA / "text" / case)
    model.set_parameters(np.random.default_rng(7).normal(size=model.parameter_count) / 2)
    return model


@pytest.mark.parametrize("case", TEXT_CASES)
def test_peft_reads_whole_tensors_of_a_model(tmp_path, case):
    model = text_adapter(case)
    save_peft(tmp_path, model)
    with torch.no_grad():
        their_model = peft.PeftModel.from_pretrained(TheirText(), tmp_path)
        assert_close(model.predict(IDS), their_model(torch.from_numpy(IDS)).numpy())
        merged = their_model.merge_and_unload()
        assert_close(model.predict(IDS), merged(torch.from_numpy(IDS)).numpy())
    merge_checkpoint(TEXT_BASE, load_peft(tmp_path), tmp_path / "merged.safetensors")
    for name, array in load_safetensors(tmp_path / "merged.safetensors").items():
        assert_close(array, merged.state_dict()[name].numpy())


@pytest.mark.filterwarnings("ignore:.*lora_B.bias")  # PEFT takes the bias of B for a factor without its second axis
@pytest.mark.parametrize("case", TEXT_CASES)
def test_peft_writes_again_what_we_wrote(tmp_path, case):
    save_peft(tmp_path / "ours", load_peft(DATA / "text" / case))
    model = peft.PeftModel.from_pretrained(TheirText(), tmp_path / "ours", is_trainable=True)
    model.save_pretrained(tmp_path / "theirs")
    ours, again = (load_safetensors(tmp_path / name / WEIGHTS) for name in ("ours", "theirs"))
    assert set(ours) == set(again)
    for name, array in ours.items():
        assert np.array_equal(again[name], array)


LANGUAGE_MODEL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
LANGUAGE_MODEL |= {"vocab_size": 9, "max_position_embeddings": 16, "tie_word_embeddings": True}
OF_TRANSFORMERS = pytest.mark.filterwarnings("ignore::FutureWarning")  # about a name that PEFT uses


@pytest.fixture
def language_model(tmp_path):
    """The folder of a small language model of transformers whose head is its embedding."""
    transformers = pytest.importorskip("transformers")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LANGUAGE_MODEL)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def assert_same_logits(model, their_model):
    ids = [[3, 1, 4, 8]]
    with torch.no_grad():
        assert_close(model.predict(ids), their_model.eval()(torch.tensor(ids)).logits.numpy(), 1e-5)


@OF_TRANSFORMERS
def test_peft_reads_a_trained_table_of_a_tied_language_model(tmp_path, language_model):
    transformers = pytest.importorskip("transformers")
    options = {"rank": 2, "targets": ["q_proj"], "train": ["model.embed_tokens"], "rng": 0}
    model = apply_lora(load_pretrained(language_model), StandardLoRAAdapter, **options)
    model.set_parameters(np.random.default_rng(1).normal(size=model.parameter_count) / 2)
    save_peft(tmp_path / "adapter", model)
    their_model = transformers.LlamaForCausalLM.from_pretrained(language_model)
    assert_same_logits(model, peft.PeftModel.from_pretrained(their_model, tmp_path / "adapter"))
    assert_same_logits(apply_peft(load_pretrained(language_model), tmp_path / "adapter"), their_model)


OF_A_TIED_PAIR = {
    "a low-rank table": {"target_modules": ["embed_tokens", "q_proj"]},
    "a low-rank head": {"target_modules": ["lm_head", "q_proj"]},
    "a trained table": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "a trained head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "both alike": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 1]},
}


@OF_TRANSFORMERS
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns of the difference that is tested here
@pytest.mark.parametrize("kind", OF_A_TIED_PAIR)
def test_what_peft_trains_of_a_tied_language_model(tmp_path, language_model, kind):
    transformers = pytest.importorskip("transformers")
    base = transformers.LlamaForCausalLM.from_pretrained(language_model)
    their_model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=3, **OF_A_TIED_PAIR[kind]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in their_model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) / 2)
    their_model.save_pretrained(tmp_path / "adapter")
    assert_same_logits(apply_peft(load_pretrained(language_model), tmp_path / "adapter"), their_model)
