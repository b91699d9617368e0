"""Print the differences between ONNX files and lora_np for every kind of layer and adapter and every activation.

Each is exported to ONNX, run by onnxruntime on 64 rows and compared with `predict`: the largest difference, relative to the
largest output or 1. The exit code is 1 if a difference is above 1e-12 (float64) or 1e-6 (float32).

    python -m pip install -e ".[test]"
    python scripts/onnx_table.py [NAME ...]
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_np import ActivationLayer
from lora_np.functions.activations import ACTIVATIONS
from lora_np.io.onnx import to_onnx
from lora_np.terminal.table import table
from tests.kinds import LAYERS, batch, randomised

try:
    import onnx
    import onnxruntime
except ModuleNotFoundError as error:
    sys.exit(f'This script requires onnx and onnxruntime ({error}): python -m pip install -e ".[test]"')

TOLERANCES = {"float64": 1e-12, "float32": 1e-6}


def difference(layer, adapters):
    """The largest relative difference between onnxruntime and lora_np."""
    model = to_onnx(layer, adapters=adapters)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = batch(64, layer.input_size).astype(layer.dtype)
    expected = layer.predict(x)
    (actual,) = session.run(None, {"input": x})
    return np.abs(actual - expected).max() / max(1.0, np.abs(expected).max())


def main() -> None:
    builders = {f"activation {a.name}": (lambda dtype, a=a: ActivationLayer(5, a, dtype=dtype)) for a in ACTIVATIONS}
    builders |= LAYERS
    names = sys.argv[1:] or list(builders)
    columns = [(dtype, adapters) for dtype in TOLERANCES for adapters in ("merged", "inputs")]
    rows, failed = [], False
    for name in names:
        found = [difference(randomised(builders[name](dtype)), adapters) for dtype, adapters in columns]
        failed |= any(value > TOLERANCES[dtype] for value, (dtype, _) in zip(found, columns, strict=True))
        rows.append([name, *(f"{value:.1e}" for value in found)])
    print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, NumPy {np.__version__}\n")
    print(table(["layer", *(f"{dtype} {adapters}" for dtype, adapters in columns)], rows))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
