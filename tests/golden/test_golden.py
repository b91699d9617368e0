"""The layers against golden vectors that were computed without them; `make.py` computes them again."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lora_np import (
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    LoRALayer,
    MeanSquaredError,
    MultiLoRAAdapter,
    StandardLoRAAdapter,
    VeRAAdapter,
)
from tests.golden import make

GOLDEN = json.loads(make.FILE.read_text(encoding="utf-8"))
SETTINGS, ARRAYS = GOLDEN["settings"], {name: np.array(value) for name, value in GOLDEN["arrays"].items()}
IN, OUT, RANK, ALPHA = make.IN, make.OUT, make.RANK, make.ALPHA

close = {"rtol": 1e-12, "atol": 1e-14}


@pytest.fixture(params=[DenseLayer, FullyConnectedLayer])
def base_class(request):
    return request.param


def base(base_class):
    layer = base_class(IN, OUT)
    layer.load_weights({"weight": layer.in_layout(ARRAYS["W"]), "bias": ARRAYS["b"]}, strict=True)
    return layer


def filled(adapter, names):
    """The adapter with its arrays replaced by the golden arrays of these names."""
    for own, name in names.items():
        assert adapter.set_parameter(own, ARRAYS[name])
    return adapter


BRANCH = {"lora.matrix_a": "A", "lora.matrix_b": "B"}
TASKS = {f"tasks.{task}.matrix_{letter.lower()}": f"{task}.{letter}" for task in ("first", "second") for letter in "AB"}
VERA = {"lora.projection_a": "A", "lora.projection_b": "B", "lora.vector_d": "d", "lora.vector_b": "v"}


def lora(base_class, frozen=True):
    return filled(StandardLoRAAdapter(base(base_class), RANK, ALPHA, frozen), BRANCH)


def dylora(base_class, **options):
    return filled(DyLoRAAdapter(base(base_class), RANK, [1, 2], ALPHA, **options), BRANCH)


def multilora(base_class, frozen=True):
    adapter = MultiLoRAAdapter(base(base_class), "first", 1, ALPHA, frozen)
    adapter.add_task("second", 2, ALPHA)
    return filled(adapter, TASKS)


def check(case, adapter, forward, names):
    """Compare a pass with its golden vectors: every gradient that they hold, and the output."""
    expected = GOLDEN["passes"][case]
    found = {"y": forward(ARRAYS["x"])}
    found |= {"dx": adapter.backward(ARRAYS["G"])} | {f"d{name}": adapter.gradients[own] for own, name in names.items()}
    if "dW" in expected:
        layout = adapter.base_layer.in_layout
        found |= {"dW": layout(adapter.gradients["base.weight"]), "db": adapter.gradients["base.bias"]}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert_allclose(found[name], values, **close, err_msg=name)


def test_lora(base_class):
    adapter = lora(base_class, frozen=False)
    check("lora", adapter, adapter.forward, BRANCH)


def test_a_low_rank_layer_alone(base_class):
    layer = LoRALayer.from_factors(ARRAYS["A"], ARRAYS["B"], ALPHA)
    expected = np.array(GOLDEN["passes"]["lora"]["y"]) - base(base_class).predict(ARRAYS["x"])
    assert_allclose(layer.predict(ARRAYS["x"]), expected, **close)


@pytest.mark.parametrize("scaling", make.SCALINGS)
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dylora_at_every_rank(base_class, scaling, rank, training):
    adapter = dylora(base_class, scaling=scaling).train(training)
    check(f"dylora-{scaling}-{rank}", adapter, lambda x: adapter.forward(x, rank=rank), BRANCH)


@pytest.mark.parametrize("scaling", make.SCALINGS)
@pytest.mark.parametrize("rank", [1, 2])
def test_merged_dylora_at_every_rank(base_class, scaling, rank):
    adapter = dylora(base_class, scaling=scaling)
    adapter.set_deployment_rank(rank)
    expected = GOLDEN["passes"][f"dylora-{scaling}-{rank}"]["y"]
    assert_allclose(adapter.merge_to_original_layer().predict(ARRAYS["x"]), expected, **close)
    assert_allclose(adapter.outputs_at_ranks(ARRAYS["x"])[rank], expected, **close)


@pytest.mark.parametrize("task", ["first", "second"])
def test_multilora_by_task(base_class, task):
    adapter = multilora(base_class)
    adapter.current_task = task
    own = {name: golden for name, golden in TASKS.items() if golden.startswith(task)}
    check(f"multilora-{task}", adapter, adapter.forward, own)
    assert adapter.gradients.keys() == own.keys()


def test_multilora_of_a_mixed_batch(base_class):
    adapter = multilora(base_class, frozen=False)
    check("multilora-mixed", adapter, lambda x: adapter.forward(x, tasks=SETTINGS["tasks"]), TASKS)


def test_dora(base_class):
    adapter = filled(DoRAAdapter(base(base_class), RANK, ALPHA, False), BRANCH | {"magnitude": "m"})
    check("dora", adapter, adapter.forward, BRANCH | {"magnitude": "m"})


def test_vera(base_class):
    adapter = filled(VeRAAdapter(base(base_class), RANK, ALPHA, False), VERA)
    check("vera", adapter, adapter.forward, {"lora.vector_d": "d", "lora.vector_b": "v"})


# ---------------------------------------------------------------- ten steps


def check_training(case, adapter, forward, names):
    expected, loss, losses = GOLDEN["training"][case], MeanSquaredError(), []
    for step in range(len(expected["losses"])):
        value, dy = loss.value_and_gradient(forward(step), ARRAYS["t"])
        adapter.backward(dy)
        adapter.update_parameters(SETTINGS["learning_rate"])
        losses.append(value)
    assert len(losses) == 10
    assert_allclose(losses, expected["losses"], **close)
    for own, name in names.items():
        assert_allclose(adapter.try_get_parameter(own), expected["after"][name], **close)


def test_the_loss_curve_of_lora(base_class):
    adapter = lora(base_class)
    check_training("lora", adapter, lambda step: adapter.forward(ARRAYS["x"]), BRANCH)


def test_the_loss_curve_of_lora_with_a_trained_base(base_class):
    adapter = lora(base_class, frozen=False)
    check_training("lora-trained-base", adapter, lambda step: adapter.forward(ARRAYS["x"]), BRANCH | {"base.bias": "b"})
    assert_allclose(adapter.base_layer.matrix, GOLDEN["training"]["lora-trained-base"]["after"]["W"], **close)


@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_the_loss_curve_of_dylora(base_class, mode):
    adapter = dylora(base_class, mode=mode, scaling="paper")

    def forward(step):
        return adapter.forward(ARRAYS["x"], rank=SETTINGS["ranks"][step])

    check_training(f"dylora-{mode}", adapter, forward, BRANCH)


def test_the_loss_curve_of_multilora(base_class):
    adapter = multilora(base_class)
    check_training("multilora-mixed", adapter, lambda step: adapter.forward(ARRAYS["x"], tasks=SETTINGS["tasks"]), TASKS)


# ---------------------------------------------------------------- the file


def test_the_file_is_what_its_maker_makes():
    assert make.text() == make.FILE.read_text(encoding="utf-8")


def test_the_maker_knows_nothing_of_the_library():
    source = make.FILE.with_name("make.py").read_text(encoding="utf-8")
    assert "numpy" not in source
    assert "import lora_np" not in source
    assert "from lora_np" not in source


def test_every_case_is_compared():
    passes = {"lora", "multilora-first", "multilora-second", "multilora-mixed", "dora", "vera"}
    ranks = {f"dylora-{scaling}-{rank}" for scaling in make.SCALINGS for rank in (1, 2)}
    assert set(GOLDEN["passes"]) == passes | ranks
    assert set(GOLDEN["training"]) == {"lora", "lora-trained-base", "dylora-full", "dylora-frozen", "multilora-mixed"}
