import pytest

from tests.kinds import ALPHA, BASES, IN, KINDS, OUT, RANK, batch, randomised


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=BASES)
def base_class(request):
    return BASES[request.param]


@pytest.fixture(params=[True, False], ids=["frozen", "trained"])
def frozen(request):
    return request.param


@pytest.fixture
def base(base_class):
    return randomised(base_class(IN, OUT), seed=5)


@pytest.fixture
def adapter(kind, base, frozen):
    return randomised(KINDS[kind](base, RANK, ALPHA, frozen, rng=0))


@pytest.fixture
def x():
    return batch(4, IN, seed=1)


@pytest.fixture
def dy():
    return batch(4, OUT, seed=2)
