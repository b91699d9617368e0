"""transformers and PEFT, where they are installed: the same hidden states, gradients and adapters on all-MiniLM-L6-v2.

`scripts/test_transformers` installs them, downloads the weights and runs these tests, which print the differences found.
"""

import copy
import re

import numpy as np
import pytest

from lora_np import (
    DoRAAdapter,
    DyLoRAAdapter,
    MultiLoRAAdapter,
    StandardLoRAAdapter,
    apply_lora,
    find,
    merge_in_place,
    select_rank,
    select_task,
)
from lora_np.io.peft import apply_peft, save_peft
from lora_np.io.pretrained import load_pretrained
from lora_np.models.heads import SentenceEncoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

# PEFT uses names that transformers has deprecated.
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::FutureWarning")]

LENGTHS = {"ragged": [9, 25, 1, 64], "full": [16, 16, 16], "one": [12]}
TASKS = ["second", None, "second", "first"]
QUERY_AND_VALUE = ["query", "value"]
ALL_DENSE = ["query", "key", "value", "dense"]


def batch(lengths):
    """Random ids, padded with -1; not 0, for which torch computes no gradient."""
    ids = np.random.default_rng(0).integers(1, 30522, (len(lengths), max(lengths)))
    ids[np.arange(max(lengths)) >= np.array(lengths)[:, np.newaxis]] = -1
    return ids


RAGGED = batch(LENGTHS["ragged"])


@pytest.fixture(scope="module")
def original(minilm):
    """Their model in float64, without its pooler."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.AutoModel.from_pretrained(minilm, dtype=torch.float64, add_pooling_layer=False).eval()


@pytest.fixture
def theirs(original):
    """A copy: PEFT writes to the models that it adapts."""
    return copy.deepcopy(original)


@pytest.fixture
def ours(minilm):
    return load_pretrained(minilm, dtype=np.float64)


def run(model, ids, **options):
    """Their hidden states of all tokens, (B, T, D), with those at padding set to zero."""
    tokens = torch.from_numpy(ids >= 0)
    inputs = torch.from_numpy(ids).clamp(min=0)
    return model(inputs, attention_mask=tokens.long(), **options).last_hidden_state * tokens[:, :, None]


def hidden_of(model, ids=RAGGED, **options):
    with torch.no_grad():
        return run(model, ids, **options).numpy()


def assert_close(actual, wanted, tolerance, what="hidden states"):
    """Assert equality up to a fraction of the largest element."""
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert actual.shape == wanted.shape
    difference = np.abs(actual - wanted).max() / np.abs(wanted).max()
    print(f"{what}: {difference:.1e}", end="; ")
    assert difference <= tolerance


# ---------------------------------------------------------------- the encoder


@pytest.mark.parametrize("case", LENGTHS)
class TestEncoder:
    def test_hidden_states_in_float64(self, case, ours, theirs):
        ids = batch(LENGTHS[case])
        assert_close(ours.predict(ids), hidden_of(theirs, ids), 1e-13)

    def test_hidden_states_in_float32(self, case, minilm, theirs):
        ids = batch(LENGTHS[case])
        wanted = hidden_of(theirs, ids)
        assert_close(hidden_of(theirs.float(), ids), wanted, 1e-5, "their hidden states in float32")
        assert_close(load_pretrained(minilm).predict(ids), wanted, 3e-6)

    def test_gradients_of_all_arrays(self, case, ours, theirs):
        ids = batch(LENGTHS[case])
        dy = np.random.default_rng(1).normal(size=(*ids.shape, ours.output_size))
        run(theirs, ids).backward(torch.from_numpy(dy))
        ours.forward(ids)
        ours.backward(dy)
        wanted = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
        assert set(wanted) == set(ours.gradients)
        assert len(wanted) == 101
        assert_same_gradients(ours.gradients, wanted)


def assert_same_gradients(ours, theirs, tolerance=1e-10):
    """Relative to the largest element of each array; absolute for biases of keys.

    Their gradient is zero in exact arithmetic: the softmax ignores what is added to all keys.
    """
    differences = {name: np.abs(ours[name] - wanted).max() for name, wanted in theirs.items()}
    relative = [d / np.abs(theirs[name]).max() for name, d in differences.items() if not name.endswith("key.bias")]
    absolute = [d for name, d in differences.items() if name.endswith("key.bias")]
    biases = f" (biases of keys, absolute: {np.max(absolute):.1e})" if absolute else ""
    print(f"gradients of {len(theirs)} arrays: {np.max(relative):.1e}{biases}", end="; ")
    assert np.max(relative + absolute) <= tolerance


def test_sentence_embeddings(ours, theirs):
    lengths = torch.tensor(LENGTHS["ragged"])[:, None]
    wanted = torch.nn.functional.normalize(torch.from_numpy(hidden_of(theirs)).sum(1) / lengths)
    assert_close(SentenceEncoder(ours).predict(RAGGED), wanted, 1e-13, "sentence embeddings")


# ---------------------------------------------------------------- adapters that PEFT writes

CONFIGS = {
    "lora": {"r": 4, "lora_alpha": 6, "target_modules": QUERY_AND_VALUE},
    "lora on every dense layer": {"r": 2, "lora_alpha": 3, "target_modules": ALL_DENSE},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["output.dense"]},
    "patterns": {"r": 4, "target_modules": QUERY_AND_VALUE, "rank_pattern": {"layer.5.attention.self.query": 8}},
    "dora": {"r": 4, "lora_alpha": 3, "use_dora": True, "target_modules": QUERY_AND_VALUE},
    "two layers of six": {"r": 4, "target_modules": ALL_DENSE, "layers_to_transform": [1, 4]},
}


def randomised(model, seed=0):
    """Their model with adapters of random values: new ones have no effect, because B is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 16)
    return model


def assert_same_adapters(model, their_model, tasks=None):
    """The hidden states, and the gradients of the adapters' arrays; PEFT's DoRA treats norms as constants there."""
    for adapter in find(model, DoRAAdapter).values():
        adapter.norm_gradient = False
    options = {} if tasks is None else {"adapter_names": [task or "__base__" for task in tasks]}
    theirs = run(their_model, RAGGED, **options)
    dy = np.random.default_rng(1).normal(size=theirs.shape)
    theirs.backward(torch.from_numpy(dy))
    assert_close(model.forward(RAGGED, tasks=tasks), theirs.detach(), 1e-13)
    model.backward(dy)
    wanted = {}  # not for layers that a task does not adapt, where our task is zero
    for name, parameter in their_model.named_parameters():
        if parameter.requires_grad:
            wanted[our_name(name, tasks)] = parameter.grad.numpy().T
    assert tasks or set(wanted) == set(model.gradients)
    assert_same_gradients(model.gradients, wanted)


def our_name(name, tasks):
    """Our name of an array of PEFT's: of a single adapter, or of one of several tasks."""
    path, kind, adapter, *_ = re.fullmatch(r"base_model\.model\.(.+)\.lora_(\w+)\.(\w+)(\.weight)?", name).groups()
    if kind == "magnitude_vector":
        return f"{path}.magnitude"
    return f"{path}.{'lora' if tasks is None else f'tasks.{adapter}'}.matrix_{kind.lower()}"


@pytest.mark.parametrize("config", CONFIGS)
def test_an_adapter_that_peft_writes(tmp_path, config, ours, theirs):
    their_model = randomised(peft.get_peft_model(theirs, peft.LoraConfig(**CONFIGS[config])))
    their_model.save_pretrained(tmp_path)
    assert_same_adapters(apply_peft(ours, tmp_path), their_model)


def test_adapters_that_peft_writes_as_tasks_of_sentences(tmp_path, ours, theirs):
    their_model = peft.get_peft_model(theirs, peft.LoraConfig(**CONFIGS["lora"]), adapter_name="first")
    their_model.add_adapter("second", peft.LoraConfig(r=2, lora_alpha=5, target_modules=["key", "intermediate.dense"]))
    randomised(their_model).save_pretrained(tmp_path)
    folders = {task: tmp_path / task for task in ("first", "second")}
    assert_same_tasks(apply_peft(ours, folders), their_model)


# ---------------------------------------------------------------- adapters that PEFT reads


def multilora(linear):
    adapter = MultiLoRAAdapter(linear, "first", 2, 3.0, rng=0)
    adapter.add_task("second", 4)
    return adapter


KINDS = {
    "standard": lambda linear: StandardLoRAAdapter(linear, 4, 6.0),
    "rslora": lambda linear: StandardLoRAAdapter(linear, 4, 6.0, scaling="rslora"),
    "dora": lambda linear: DoRAAdapter(linear, 4, 6.0),
    "dylora": lambda linear: DyLoRAAdapter(linear, 4, [1, 2, 4], 6.0),
    "multilora": multilora,
}


def adapted(model, kind, targets):
    """The encoder with adapters of random values."""
    model, random = apply_lora(model, KINDS[kind], targets=targets), np.random.default_rng(0)
    for name, array in model.named_parameters().items():
        if "matrix" in name:
            model.set_parameter(name, random.normal(size=array.shape) / 16)
    return model


def read_by_peft(model, folder, name="default"):
    return peft.PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=True).eval()


@pytest.mark.parametrize("targets", [QUERY_AND_VALUE, ALL_DENSE], ids=["query and value", "every dense layer"])
@pytest.mark.parametrize("kind", ["standard", "rslora", "dora"])
def test_an_adapter_that_peft_reads(tmp_path, kind, targets, ours, theirs):
    model = adapted(ours, kind, targets)
    save_peft(tmp_path, model)
    assert_same_adapters(model, read_by_peft(theirs, tmp_path))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_dylora_at_a_rank_that_peft_reads(tmp_path, rank, ours, theirs):
    model = adapted(ours, "dylora", QUERY_AND_VALUE)
    save_peft(tmp_path, model, rank=rank)
    wanted = hidden_of(read_by_peft(theirs, tmp_path))
    assert_close(model.predict(RAGGED, rank=rank), wanted, 1e-13)
    select_rank(model, rank)
    assert_close(model.predict(RAGGED), wanted, 1e-13)


def test_tasks_of_sentences_that_peft_reads(tmp_path, ours, theirs):
    model = adapted(ours, "multilora", QUERY_AND_VALUE)
    save_peft(tmp_path, model)
    their_model = read_by_peft(theirs, tmp_path / "first", "first")
    their_model.load_adapter(tmp_path / "second", "second")
    assert_same_tasks(model, their_model)


def assert_same_tasks(model, their_model):
    """In batches of one task, and in one batch with sentences of each task and of none."""
    for task in ("first", "second"):
        select_task(model, task)
        their_model.set_adapter(task)
        assert_close(model.predict(RAGGED), hidden_of(their_model), 1e-13)
    for name, parameter in their_model.named_parameters():
        parameter.requires_grad = "lora_" in name  # those of the current adapter alone had gradients
    assert_same_adapters(model, their_model.eval(), TASKS)


def test_merged_weights(tmp_path, ours, theirs):
    model = adapted(ours, "dora", ALL_DENSE)
    save_peft(tmp_path, model)
    merge_in_place(model)
    merged = read_by_peft(theirs, tmp_path).merge_and_unload()
    arrays = model.named_parameters(frozen=True)
    assert set(arrays) == set(merged.state_dict())
    for name, tensor in merged.state_dict().items():
        np.testing.assert_allclose(arrays[name], tensor.numpy(), rtol=0, atol=1e-14)
    assert_close(model.predict(RAGGED), hidden_of(merged), 1e-13)
