"""Features adapted to y."""

import numpy as np
import pytest

from lora_np import ArgumentError, DoRAAdapter, DyLoRAAdapter, Sequential, StandardLoRAAdapter, has_adapters
from lora_np.sklearn import LoRATransformer

from .conftest import blobs, network

QUICK = {"epochs": 2, "base_epochs": 2, "random_state": 0}


def separation(features, y):
    """The fraction of the variance of the features that lies between the classes."""
    means = np.stack([features[y == label].mean(axis=0) for label in np.unique(y)])
    return means[y].var(axis=0).sum() / features.var(axis=0).sum()


def test_the_features_are_those_of_the_adapted_base():
    X, y = blobs()
    base = network(5)
    transformer = LoRATransformer(base, **QUICK).fit(X, y)
    assert transformer.transform(X).shape == (90, 5)
    assert [path for path, layer in transformer.model_.walk().items() if isinstance(layer, StandardLoRAAdapter)] == [
        "0",
        "1",
    ]
    np.testing.assert_array_equal(transformer.transform(X), transformer.model_.predict(X))
    inside = transformer.model_.named_parameters(frozen=True)
    np.testing.assert_array_equal(inside["1.base.weight"], base[1].weight)
    assert np.abs(transformer.transform(X) - base.predict(X)).max() > 0.01


def test_a_base_whose_outputs_are_as_many_as_the_classes_gets_a_head_all_the_same():
    X, y = blobs()
    transformer = LoRATransformer(network(3), **QUICK).fit(X, y)
    assert list(transformer.model_.children()) == ["0", "0_activation", "1"]


def test_a_layer_called_head_in_the_base_is_adapted():
    X, y = blobs()
    base = Sequential({"body": network()[0], "head": network(5)[1]})
    assert isinstance(LoRATransformer(base, **QUICK).fit(X, y).model_["head"], StandardLoRAAdapter)


def test_without_a_base_the_features_are_the_last_hidden_layer():
    X, y = blobs()
    transformer = LoRATransformer(hidden_layer_sizes=(8, 5), **QUICK).fit(X, y)
    assert transformer.transform(X).shape == (90, 5)
    assert (transformer.transform(X) >= 0).all()  # relu
    assert list(transformer.get_feature_names_out()) == [f"loratransformer{i}" for i in range(5)]


def test_adapting_separates_the_classes():
    X, y = blobs()
    X = X + np.random.default_rng(1).standard_normal(X.shape)
    base = network(5)
    transformer = LoRATransformer(base, epochs=40, random_state=0).fit(X, y)
    assert separation(transformer.transform(X), y) > separation(base.predict(X), y) + 0.05


@pytest.mark.parametrize(
    ("y", "objective", "expected"),
    [
        (blobs()[1], "auto", "classes"),
        (blobs()[1].astype(str), "auto", "classes"),
        (blobs()[0][:, 0], "auto", "values"),
        (blobs()[0], "auto", "values"),
        (blobs()[1], "values", "values"),
        (blobs()[1][:, np.newaxis], "classes", "classes"),
    ],
)
def test_y_is_labels_or_values(y, objective, expected):
    X, _ = blobs()
    found, targets = LoRATransformer(objective=objective)._objective(y)
    assert type(found).__name__.lower() == expected
    assert found.encode(targets).shape == ((90,) if expected == "classes" else (90, y.size // 90))
    curve = LoRATransformer(network(5), objective=objective, epochs=10, random_state=0).fit(X, y).loss_curve_
    assert curve[-1] < curve[0]


def test_an_unknown_objective_is_refused():
    with pytest.raises(ArgumentError, match="objective must be one of 'auto', 'classes', 'values', got 'labels'"):
        LoRATransformer(objective="labels").fit(*blobs())


@pytest.mark.parametrize(("adapter", "kind"), [("dylora", DyLoRAAdapter), ("dora", DoRAAdapter)])
def test_other_adapters_merging_and_deployment_ranks(adapter, kind):
    X, y = blobs()
    transformer = LoRATransformer(network(5), adapter=adapter, epochs=10, random_state=0).fit(X, y)
    assert isinstance(transformer.model_["0"], kind)
    merged = transformer.merge()
    assert not has_adapters(merged.model_)
    np.testing.assert_allclose(merged.transform(X), transformer.transform(X), rtol=1e-9, atol=1e-12)
    if adapter == "dylora":
        low = transformer.set_deployment_rank(1).transform(X)
        assert np.abs(low - merged.transform(X)).max() > 1e-3
