"""The numbers of operations of the activations, from which layers estimate their cost."""

import ast

import pytest

from lora_np import sigmoid
from lora_np.functions.activations import ACTIVATIONS

FORMULAS = {
    "relu": "max(z, 0)",
    "leaky_relu": "(z > 0, a * z)",
    "elu": "(z > 0, exp(z) - 1)",
    "selu": "(z > 0, c * (exp(z) - 1))",
    "sigmoid": "1 / (1 + exp(-z))",
    "tanh": "tanh(z)",
    "softplus": "max(z, 0) + log1p(exp(z))",
    "softsign": "z / (1 + abs(z))",
    "swish": "z * (1 / (1 + exp(-z)))",
    "gelu": "z * a * (1 + tanh(c * (z + d * z * z * z)))",
    "softmax": "(z - max(z), y / sum(exp(z)))",
}


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a.name in FORMULAS], ids=lambda a: a.name)
def test_operations_are_counted_in_the_formula(activation):
    """For instance softsign: an absolute value, a sum and a quotient."""
    kinds = ast.BinOp | ast.UnaryOp | ast.Call | ast.Compare
    formula = ast.parse(FORMULAS[activation.name])
    assert activation.operations == sum(isinstance(node, kinds) for node in ast.walk(formula))


def test_an_activation_does_not_change_after_it_is_made():
    with pytest.raises(AttributeError):
        sigmoid.operations = 0
