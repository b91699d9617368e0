"""Mistakes that a type checker must find: mypy --strict reports an ignore that nothing needs. This file is never run."""

import lora_np
from lora_np import Adam, DenseLayer, MeanSquaredError, Sequential, StandardLoRAAdapter, apply_lora
from lora_np import missing as missing_class  # type: ignore[attr-defined]
from lora_np.io import load_missing  # type: ignore[attr-defined]

model = Sequential([DenseLayer(2, 3), missing_class(load_missing)])
model.froward([1.0, 2.0])  # type: ignore[attr-defined]
lora_np.fit(model, ([], []), MeanSquaredError(), "adam", 1, 1)  # type: ignore[arg-type]
lora_np.fit(model, ([], []), MeanSquaredError(), Adam())  # type: ignore[call-arg]
adapted: DenseLayer = apply_lora(model, StandardLoRAAdapter, rank=1)  # type: ignore[assignment]
apply_lora(model, "lora")  # type: ignore[call-overload]
DenseLayer("2", 3)  # type: ignore[arg-type]
lora_np.missing()  # type: ignore[attr-defined]
lora_np.plot.missing()  # type: ignore[attr-defined]
lora_np.io.missing()  # type: ignore[attr-defined]
