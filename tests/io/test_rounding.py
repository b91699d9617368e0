"""What rounding loses of a merge, against a direct computation."""

import numpy as np
import pytest

from lora_np import FormatError, LoRALayer
from lora_np.factors.weights import AdapterWeights
from lora_np.io import rounding
from lora_np.io.merge import merge_checkpoint
from lora_np.io.rounding import RoundingLoss, rounding_losses
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.kinds import batch


def merged(folder, dtype, size=1e-3, **options):
    """A base, an adapter, and the result of merging them."""
    base = {"up.weight": batch(9, 7, seed=1), "down.weight": batch(7, 9, seed=2), "norm.weight": np.ones(7)}
    save_safetensors(folder / "base", base, dtypes=dict.fromkeys(base, dtype))
    adapter = AdapterWeights(
        {"up": LoRALayer.from_factors(batch(7, 2, seed=3), size * batch(2, 9, seed=4))},
        whole={"norm.weight": np.zeros(7)},
    )
    merge_checkpoint(folder / "base", adapter, folder / "merged", **options)
    return folder / "base", adapter, folder / "merged"


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("piece", [1 << 16, 10])
def test_the_losses_equal_those_of_the_stored_values(tmp_path, monkeypatch, dtype, piece, subtract):
    monkeypatch.setattr(rounding, "PIECE", piece)
    base, adapter, output = merged(tmp_path, dtype)
    if subtract:
        adapter = AdapterWeights(adapter.layers)
        merge_checkpoint(base, adapter, output, subtract=True)
    (loss,) = rounding_losses(base, adapter, output, subtract=subtract)
    before, after = (load_safetensors(file)["up.weight"].astype(float) for file in (base, output))
    exact = (-1 if subtract else 1) * adapter.delta("up").T.astype(float)
    assert (loss.key, loss.dtype, loss.size) == ("up.weight", dtype, 63)
    assert loss.change == pytest.approx(np.linalg.norm(exact))
    assert loss.lost == pytest.approx(np.linalg.norm(after - before - exact), rel=1e-6, abs=1e-15)
    assert loss.share == pytest.approx(loss.lost / loss.change)
    assert loss.unchanged == (after == before).sum()
    assert (loss.unchanged > 0) == (dtype in ("BF16", "F16"))


def test_a_small_update_is_lost_completely(tmp_path):
    (loss,) = rounding_losses(*merged(tmp_path, "BF16", size=1e-9))
    assert loss.unchanged == loss.size
    assert loss.share == pytest.approx(1)


def test_elements_that_the_adapter_leaves_alone_are_not_lost(tmp_path):
    save_safetensors(tmp_path / "base", {"up.weight": np.ones((2, 2))}, dtypes={"up.weight": "BF16"})
    update = LoRALayer.from_factors(np.array([[1.0], [0.0]]), np.array([[1e-5, 1e-5]]))
    adapter = AdapterWeights({"up": update})
    merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    (loss,) = rounding_losses(tmp_path / "base", adapter, tmp_path / "out")
    assert loss.unchanged == 2


def test_a_new_head_that_is_the_old_embedding_loses_nothing(tmp_path):
    save_safetensors(tmp_path / "base", {"model.embed_tokens.weight": batch(9, 4), "model.up.weight": batch(3, 4)})
    adapter = AdapterWeights(
        {"model.up": LoRALayer.from_factors(batch(4, 1), batch(1, 3))},
        whole={"model.embed_tokens.weight": batch(9, 4, seed=2)},
        config={"task_type": "CAUSAL_LM"},
    )
    merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", untie=True)
    losses = rounding_losses(tmp_path / "base", adapter, tmp_path / "out", untie=True)
    assert [loss.key for loss in losses] == ["model.up.weight"]
    with pytest.raises(FormatError, match="untie=True writes a separate head"):
        rounding_losses(tmp_path / "base", adapter, tmp_path / "out")


def test_nothing_is_lost_of_nothing():
    assert RoundingLoss("a", "F32", 0, 0.0, 0.0, 0).share == 0
