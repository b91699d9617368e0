"""The values of options: the bounds belong to them or not, and what else is refused."""

import argparse

import pytest

from lora_np.cli._options import at_least_1, finite, fraction, positive, positive_seconds, seed, tolerance


@pytest.mark.parametrize(
    ("parse", "accepted", "refused"),
    [
        (positive, ["1", "2"], ["0", "-1", "1.5", "x"]),
        (seed, ["0", "1"], ["-1", "1.5", "x"]),
        (finite, ["0", "-1.5", "1e300"], ["inf", "nan", "x"]),
        (fraction, ["1", "1e-9"], ["0", "-1", "1.1", "nan"]),
        (at_least_1, ["1", "1.5"], ["0.9", "0", "inf"]),
        (tolerance, ["0", "1e-9"], ["-1e-9", "inf"]),
        (positive_seconds, ["1e-9", "1"], ["0", "-1", "inf"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bounds(parse, accepted, refused):
    assert [parse(text) for text in accepted] == [float(text) for text in accepted]
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match="must "):
            parse(text)
