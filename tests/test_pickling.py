"""Pickle, cloudpickle and deepcopy of every public object, also in a fresh process."""

import copy
import inspect
import pickle
import subprocess
import sys
import textwrap

import cloudpickle
import numpy as np
import pytest

import lora_np
from lora_np import (
    Adam,
    Draw,
    DyLoRAAdapter,
    FunctionLoss,
    Huber,
    Layer,
    MeanSquaredError,
    Momentum,
    RankDistribution,
    Regularization,
    Run,
    Sequential,
    WeightLoadResult,
    WeightLoadValidation,
    errors,
)
from lora_np.factors.weights import extract
from lora_np.functions.activations import ACTIVATIONS
from lora_np.run import Tasks
from lora_np.surgery import Combined
from lora_np.training import History, Progress
from tests.kinds import LAYERS, batch, bits, build
from tests.models.decoders import decoder

EXPORTED = {name: getattr(lora_np, name) for name in lora_np.__all__}


def trained():
    """An optimizer with state, after a step."""
    layer, optimizer = build("dense"), Adam(0.1)
    layer.forward(batch(3, layer.input_size))
    layer.backward(batch(3, layer.output_size))
    layer.apply_updates(optimizer.updates(layer))
    return optimizer


def weights():
    return extract(Sequential({"a": build("standard-on-dense")}))


OBJECTS = {
    **EXPORTED,
    **{f"layer {name}": build(name) for name in LAYERS},
    **{f"activation {activation.name}": activation for activation in ACTIVATIONS},
    **{f"model {name}": decoder(name) for name in ("llama", "gpt2")},
    **{f"error {name}": kind("message") for name, kind in vars(errors).items() if inspect.isclass(kind)},
    "mse": MeanSquaredError(),
    "huber": Huber(0.5),
    "function loss": FunctionLoss(np.dot),
    "momentum": Momentum(0.1, nesterov=True),
    "optimizer with state": trained(),
    "regularization": Regularization(0.5, 0.25),
    "ranks": RankDistribution.of([1, 2, 4], 4),
    "draw": Draw(0.25),
    "run": Run(True, Tasks.of(["a", None, "a"], 3), 2, keep=False),
    "history": History([1.0], [1.0], [(1,)]),
    "progress": Progress(build("dense"), 1, 2, 3, 4, 0.5),
    "load result": WeightLoadResult(True, ["a"], [], 0, None),
    "validation": WeightLoadValidation(["a"], [], [], []),
    "adapter weights": weights(),
    "combined": Combined(weights(), {"": 0.0}),
}

COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "oldest pickle": lambda value: pickle.loads(pickle.dumps(value, protocol=2)),
    "cloudpickle": lambda value: pickle.loads(cloudpickle.dumps(value)),
    "deepcopy": copy.deepcopy,
}


def fingerprint(value):
    """What must survive: the bits of layers and their outputs, the state of optimizers; of everything else, its repr."""
    if isinstance(value, Layer):
        return type(value).__name__, str(bits(value.named_parameters(frozen=True))), str(value.is_training)
    if isinstance(value, lora_np.Optimizer):
        return repr(value), str(bits(value.get_state()))
    if inspect.isclass(value) or inspect.isfunction(value):
        return value.__module__, value.__qualname__
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", OBJECTS)
def test_a_copy_is_equal(name, how):
    value = OBJECTS[name]
    found = COPIES[how](value)
    assert fingerprint(found) == fingerprint(value)
    if inspect.isclass(value) or inspect.isfunction(value) or name.startswith("activation"):
        assert found is value


@pytest.mark.parametrize("how", ["pickle", "cloudpickle"])
def test_a_fresh_process_gets_the_same_objects(tmp_path, how):
    dump = {"pickle": pickle.dumps, "cloudpickle": cloudpickle.dumps}[how]
    (tmp_path / "objects").write_bytes(dump(OBJECTS))
    x = {name: batch(3, value.input_size) for name, value in OBJECTS.items() if name.startswith("layer")}
    (tmp_path / "inputs").write_bytes(pickle.dumps(x))
    program = """
        import pickle, sys
        from pathlib import Path
        folder = Path(sys.argv[1])
        objects = pickle.loads((folder / "objects").read_bytes())
        inputs = pickle.loads((folder / "inputs").read_bytes())
        found = {name: objects[name].predict(x).tobytes() for name, x in inputs.items()}
        (folder / "outputs").write_bytes(pickle.dumps((list(objects), found)))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=True)
    names, found = pickle.loads((tmp_path / "outputs").read_bytes())
    assert names == list(OBJECTS)
    assert found == {name: OBJECTS[name].predict(inputs).tobytes() for name, inputs in x.items()}


def test_the_generator_of_an_adapter_travels_with_it():
    adapter = build("dylora-on-dense")
    assert isinstance(adapter, DyLoRAAdapter)
    adapter.train()
    twin = pickle.loads(cloudpickle.dumps(adapter))
    x = batch(3, adapter.input_size)
    assert [adapter.forward(x).tobytes() for _ in range(5)] == [twin.forward(x).tobytes() for _ in range(5)]


SCRIPT = '''
import numpy as np
from functools import partial
from lora_np import Activation, Composite, DenseLayer, FunctionLoss, Sequential, SGD, apply_lora, DyLoRAAdapter, tanh
from lora_np.distributed import dask_executor, fit_shards


def load(seed):
    x = np.random.default_rng(seed).normal(size=(8, 3))
    return x, x @ np.ones((3, 2))


def loss(predictions, targets):
    return float(((predictions - targets) ** 2).mean())


def cube(z):
    return z**3


def cube_vjp(dy, z):
    return 3 * z**2 * dy


class Doubled(Composite):
    """2 f(x): a layer that only this script knows."""

    def flow(self, x, run, call):
        return 2 * call("inner", x), None

    def flow_vjp(self, dy, cache, back):
        return 2 * back("inner", dy)


def network():
    layers = [DenseLayer(3, 4, tanh, rng=0), DenseLayer(4, 4, Activation("cube", cube, cube_vjp), rng=1)]
    model = Sequential([*layers, Doubled({"inner": DenseLayer(4, 2, rng=2)}, 4, 2, float)])
    return apply_lora(model, DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], targets=["0", "2.inner"], rng=0)


def train(executor):
    model = network()
    shards = [partial(load, seed) for seed in range(3)]
    fit_shards(model, shards, FunctionLoss(loss), SGD(0.01), 2, rng=0, executor=executor)
    return model.get_parameters()


if __name__ == "__main__":
    expected = train(None)
    with dask_executor(workers=2) as executor:
        print(bool((train(executor) == expected).all()))
'''


def test_dask_runs_functions_and_classes_of_the_users_own_script(tmp_path):
    pytest.importorskip("distributed")
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == ["True"]
