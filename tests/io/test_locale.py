"""Files with text outside ASCII are read and written in a locale that is not UTF-8."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lora_np import DenseLayer, Sequential, StandardLoRAAdapter
from lora_np.io import load_peft, save_peft

ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}
NAME = "modèle/日本語"

PROGRAM = """
import locale, sys
from lora_np.io import load_peft, save_peft
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"), "not the locale of this test"
source, copy = sys.argv[1:]
save_peft(copy, load_peft(source), config={"base_model_name_or_path": "mod\\u00e8le/\\u65e5\\u672c\\u8a9e"})
"""


def in_ascii(*arguments):
    """Run Python in a locale of ASCII."""
    return subprocess.run([sys.executable, *map(str, arguments)], env=os.environ | ASCII, capture_output=True, timeout=100)


@pytest.fixture
def folder(tmp_path):
    """An adapter whose configuration is UTF-8 text."""
    model = Sequential([StandardLoRAAdapter(DenseLayer(3, 2, rng=0), 1, rng=1)])
    save_peft(tmp_path / "adapter", model)
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": NAME}
    file.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    return tmp_path / "adapter"


def test_a_configuration_with_other_text(folder, tmp_path):
    result = in_ascii("-c", PROGRAM, folder, tmp_path / "copy")
    assert result.returncode == 0, result.stderr
    settings = json.loads((tmp_path / "copy" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == NAME
    first, second = load_peft(folder), load_peft(tmp_path / "copy")
    for path, layer in first.layers.items():
        np.testing.assert_array_equal(layer.matrix_a, second.layers[path].matrix_a)


def test_the_command_line_shows_other_text(folder, tmp_path):
    strange = folder.rename(tmp_path / "modèle")
    result = in_ascii("-m", "lora_np", "inspect", strange)
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr
    assert result.stdout


def test_a_model_with_other_names_is_saved_and_loaded(tmp_path):
    program = (
        "import sys; from lora_np import DenseLayer, MultiLoRAAdapter; from lora_np.io import load_layer, save_layer\n"
        "task = 't\\u00e2che'; model = MultiLoRAAdapter(DenseLayer(2, 2, rng=0), task, 1, rng=1)\n"
        "save_layer(model, sys.argv[1]); assert load_layer(sys.argv[1]).current_task == task"
    )
    result = in_ascii("-c", program, tmp_path / "model.npz")
    assert result.returncode == 0, result.stderr
