"""NumPy is the only run-time dependency, and the global random state is never touched."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from lora_np import (
    Adam,
    DenseLayer,
    DyLoRAAdapter,
    MeanSquaredError,
    MultiLoRAAdapter,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    fit,
    relu,
)

ROOT = Path(__file__).parents[1]

EXTRAS = ["matplotlib", "tqdm", "sklearn", "scipy", "torch", "pandas", "safetensors", "mpmath", "onnx", "onnxruntime"]
EXTRAS += ["dask", "distributed", "jsonschema"]

# numpy.random also loads the runtime of its compiler, which has other names.
LOADED = """
import sys, numpy, numpy.random
before = set(sys.modules)
import lora_np
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names))
"""

# The modules that are loaded only when they are used.
LAZY = """
import sys, lora_np
before = set(sys.modules)
lora_np.surgery.truncate, lora_np.io.onnx.to_onnx, lora_np.io.load_kohya
from lora_np import data
from lora_np.io import SafetensorsFile
print(*sorted(set(sys.modules) - before))
"""

WITHOUT_EXTRAS = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # importing one of these now fails
import io
import numpy as np
import lora_np
model = lora_np.Sequential([lora_np.DenseLayer(3, 4, lora_np.relu, rng=0), lora_np.DenseLayer(4, 2, rng=1)])
adapted = lora_np.apply_lora(model, lambda layer: lora_np.StandardLoRAAdapter(layer, 1, rng=0))
lora_np.fit(adapted, (np.ones((4, 3)), np.ones((4, 2))), lora_np.MeanSquaredError(), lora_np.SGD(0.1), 2, 2, rng=0)
file = io.BytesIO()
lora_np.save_layer(adapted, file)
file.seek(0)
np.testing.assert_array_equal(lora_np.load_layer(file).predict(np.ones(3)), adapted.predict(np.ones(3)))
def refusal(code, kind):
    try:
        exec(code)
    except kind as error:
        return str(error)
assert "lora_np[plot]" in refusal("import lora_np.plot", lora_np.NotSupportedError)
assert refusal("lora_np.plot", lora_np.NotSupportedError) == refusal("import lora_np.plot", lora_np.NotSupportedError)
assert "lora_np[sklearn]" in refusal("lora_np.sklearn", ImportError)
assert refusal("lora_np.sklearn", ImportError) == refusal("import lora_np.sklearn", ImportError)
lora_np.io.onnx, lora_np.distributed  # these need their extras only when they are called
print("fine")
"""


def run(code):
    """The words that a new interpreter prints."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_import_loads_only_numpy_and_the_standard_library():
    assert set(run(LOADED)) <= {"lora_np", "numpy"}


def test_submodules_are_loaded_on_first_use():
    used = {"lora_np.surgery", "lora_np.data", "lora_np.io.onnx", "lora_np.io.kohya", "lora_np.io.safetensors"}
    assert used <= set(run(LAZY))


def test_models_are_built_trained_and_saved_without_any_extra():
    assert run(WITHOUT_EXTRAS) == ["fine"]


def numpy_state():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - what must not change
    return name, keys.tobytes(), *rest


def test_the_global_random_state_is_not_used():
    before = numpy_state(), random.getstate()
    layers = [
        StandardLoRAAdapter(DenseLayer(3, 4, relu), 2),
        DyLoRAAdapter(DenseLayer(4, 4), 2, [1, 2]),
        MultiLoRAAdapter(DenseLayer(4, 4), "task", 2),
        VeRAAdapter(DenseLayer(4, 2), 2),
    ]
    fit(Sequential(layers), (np.ones((6, 3)), np.ones((6, 2))), MeanSquaredError(), Adam(), epochs=2, batch_size=2)
    assert (numpy_state(), random.getstate()) == before


def test_a_global_seed_has_no_effect():
    weights = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002 - what must not matter
        weights.append(DenseLayer(3, 2).weight)
    assert (weights[0] != weights[1]).any()
