import pytest

from tests.kinds import LAYERS, batch
from tests.kinds import build as build_layer


@pytest.fixture(params=LAYERS)
def name(request):
    return request.param


@pytest.fixture
def layer(name):
    return build_layer(name)


@pytest.fixture
def x(layer):
    return batch(4, layer.input_size, seed=1)


@pytest.fixture
def dy(layer):
    return batch(4, layer.output_size, seed=2)
