"""Single-task estimators: what is trained, ranks, merging, partial_fit, and invalid arguments."""

from functools import partial

import numpy as np
import pytest
from sklearn.base import ClassifierMixin
from sklearn.exceptions import NotFittedError

from lora_np import (
    SGD,
    AdamW,
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    InvalidOperationError,
    MultiLoRAAdapter,
    NonFiniteError,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    has_adapters,
    tanh,
)
from lora_np.base import Layer
from lora_np.sklearn import LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor
from lora_np.sklearn.networks import rank_and_alpha
from lora_np.training import fit

from .conftest import blobs, network

KINDS = {"standard": StandardLoRAAdapter, "dylora": DyLoRAAdapter, "dora": DoRAAdapter}
QUICK = {"epochs": 2, "base_epochs": 2, "random_state": 0}


def adapters(estimator):
    return {path: layer for path, layer in estimator.model_.walk().items() if type(layer) in KINDS.values()}


def waves(rows=60, values=()):
    X = np.random.default_rng(0).standard_normal((rows, 4))
    y = X @ np.arange(4.0 * np.prod(values, dtype=int)).reshape(4, -1) / 4
    return X, y.reshape(rows, *values)


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize(
    "kind", [LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor], ids=lambda kind: kind.__name__
)
def test_defaults_are_those_of_the_classifier(kind):
    expected, found = LoRAClassifier().get_params(), kind().get_params()
    both = found.keys() & expected.keys()
    assert {name: found[name] for name in both} == {name: expected[name] for name in both}
    assert len(both) >= 18


def test_the_defaults_of_the_classifier():
    values = LoRAClassifier().get_params()
    assert {name: value for name, value in values.items() if value is not None and not callable(value)} == {
        "hidden_layer_sizes": (64,),
        "adapter": "standard",
        "rank": 4,
        "alpha": -1.0,
        "learning_rate": 0.01,
        "epochs": 20,
        "base_epochs": 20,
        "batch_size": 32,
        "early_stopping": False,
        "validation_fraction": 0.1,
        "n_iter_no_change": 10,
        "tol": 1e-4,
        "warm_start": False,
        "verbose": False,
    }


@pytest.mark.parametrize("adapter", KINDS)
def test_each_dense_layer_gets_an_adapter_of_the_kind_and_rank(adapter, base):
    classifier = LoRAClassifier(base, adapter=adapter, rank=2, alpha=6.0, **QUICK).fit(*blobs())
    found = adapters(classifier)
    assert [(path, type(layer)) for path, layer in found.items()] == [("0", KINDS[adapter]), ("1", KINDS[adapter])]
    assert {(layer.rank, layer.lora_layer.scaling) for layer in found.values()} == {(2, 3.0)}


def test_a_layer_that_is_smaller_takes_its_full_rank_with_the_same_scaling():
    classifier = LoRAClassifier(network(), rank=5, alpha=10.0, **QUICK).fit(*blobs())
    assert [(a.rank, a.lora_layer.scaling) for a in adapters(classifier).values()] == [(4, 2.0), (3, 2.0)]
    classifier = LoRAClassifier(network(), rank=5, **QUICK).fit(*blobs())
    assert [(a.rank, a.lora_layer.scaling) for a in adapters(classifier).values()] == [(4, 1.0), (3, 1.0)]


@pytest.mark.parametrize(
    ("rank", "alpha", "expected"), [(3, 0.5, (3, 0.5)), (4, 0.5, (3, 0.375)), (4, 8.0, (3, 6.0)), (4, -1.0, (3, -1.0))]
)
def test_the_scaling_is_kept_unless_alpha_means_the_rank(rank, alpha, expected):
    assert rank_and_alpha(DenseLayer(3, 5), rank, alpha) == expected


def test_only_the_targets_are_adapted():
    assert list(adapters(LoRAClassifier(network(), targets=["1"], **QUICK).fit(*blobs()))) == ["1"]


@pytest.mark.parametrize("adapter", KINDS)
def test_a_base_that_knows_other_classes_is_adapted_to_these(adapter, base):
    X, y = blobs()
    y = (y + 1) % 3
    classifier = LoRAClassifier(base, adapter=adapter, rank=3, random_state=0, epochs=30).fit(X, y)
    assert (base.predict(X).argmax(axis=1) == y).mean() < 0.1
    assert classifier.score(X, y) > 0.95
    assert classifier.loss_curve_.shape == (30,)
    assert classifier.loss_curve_[-1] < 0.3 * classifier.loss_curve_[0]


def test_the_frozen_base_is_inside_as_it_was(base):
    classifier = LoRAClassifier(base, **QUICK).fit(*blobs())
    inside = classifier.model_.named_parameters(frozen=True)
    for path in ("0", "1"):
        np.testing.assert_array_equal(inside[f"{path}.base.weight"], base[path].weight)
    assert set(classifier.model_.named_parameters()) == {f"{p}.lora.matrix_{m}" for p in "01" for m in "ab"}


def test_without_a_base_a_network_of_these_sizes_is_trained_first():
    X, y = blobs()
    classifier = LoRAClassifier(hidden_layer_sizes=(8, 5), activation=tanh, random_state=0).fit(X, y)
    assert list(adapters(classifier)) == ["base.hidden1", "base.hidden2", "head"]
    assert [a.output_size for a in adapters(classifier).values()] == [8, 5, 3]
    assert set(classifier.model_["base"].get_activation_types()) == {"tanh", "identity"}
    for adapter in adapters(classifier).values():
        adapter.lora_layer.set_parameters(np.zeros(adapter.lora_layer.parameter_count))
    assert classifier.score(X, y) > 0.95  # the network alone


@pytest.mark.parametrize("sizes", [8, np.int64(8), [8], (8,)])
def test_one_hidden_layer_needs_no_brackets(sizes):
    assert adapters(LoRAClassifier(hidden_layer_sizes=sizes, **QUICK).fit(*blobs()))["base.hidden1"].output_size == 8


def test_a_base_with_other_outputs_gets_a_head_that_is_trained_first(base):
    X, y = blobs()
    features = Sequential([base.clone()[0]])
    classifier = LoRAClassifier(features, random_state=0).fit(X, y)
    assert list(adapters(classifier)) == ["base.0", "head"]
    inside = classifier.model_.named_parameters(frozen=True)
    np.testing.assert_array_equal(inside["base.0.base.weight"], features[0].weight)
    for adapter in adapters(classifier).values():
        adapter.lora_layer.set_parameters(np.zeros(adapter.lora_layer.parameter_count))
    assert classifier.score(X, y) > 0.9


def test_a_single_layer_is_a_base_too():
    X, y = blobs()
    classifier = LoRAClassifier(DenseLayer(4, 3, tanh, rng=0), rank=3, epochs=60, learning_rate=0.1, random_state=0)
    classifier.fit(X, y)
    assert classifier.score(X, y) > 0.95
    np.testing.assert_allclose(classifier.merge().predict_proba(X), classifier.predict_proba(X), rtol=1e-12)


@pytest.mark.parametrize(("given", "expected"), [(np.float32, np.float32), (np.float64, np.float64), (int, np.float64)])
def test_without_a_base_the_network_has_the_dtype_of_a_float_x(given, expected):
    X, y = blobs()
    classifier = LoRAClassifier(**QUICK).fit(X.astype(given), y)
    assert classifier.predict_proba(X).dtype == classifier.model_.dtype == expected
    assert {array.dtype for array in classifier.model_.named_parameters(frozen=True).values()} == {np.dtype(expected)}
    assert LoRARegressor(**QUICK).fit(X.astype(given), y).predict(X).dtype == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_base_is_kept(dtype):
    X, y = blobs()
    classifier = LoRAClassifier(network(dtype=dtype), **QUICK).fit(X, y)
    assert classifier.predict_proba(X).dtype == classifier.model_.dtype == dtype


@pytest.mark.parametrize("labels", [["b", "a", "c"], [10, -3, 7], [True, False, True], np.array(["x", "y", "z"], object)])
def test_labels_of_any_kind_come_back(labels, base):
    X, y = blobs()
    y = np.asarray(labels)[y]
    classifier = LoRAClassifier(epochs=5, base_epochs=30, random_state=0).fit(X, y)
    np.testing.assert_array_equal(classifier.classes_, np.unique(y))
    predicted = classifier.predict(X)
    assert predicted.dtype == y.dtype
    assert (predicted == y).mean() > 0.9


def test_optimizers_may_have_settings_of_their_own(base):
    plain, decayed = (
        LoRAClassifier(base, optimizer=kind, **QUICK).fit(*blobs()) for kind in (AdamW, partial(AdamW, weight_decay=50.0))
    )
    norms = [np.linalg.norm(estimator.model_.get_parameters()) for estimator in (plain, decayed)]
    assert norms[1] < 0.5 * norms[0]


def test_a_training_that_diverges_stops():
    X, y = waves()
    with pytest.raises(NonFiniteError, match="learning rate"):
        LoRARegressor(optimizer=SGD, learning_rate=1e6).fit(X, y)


# ---------------------------------------------------------------- regression


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("kind", [LoRARegressor, MultiLoRARegressor], ids=lambda kind: kind.__name__)
def test_values_may_be_numbers_as_objects(kind, method):
    X, y = waves()
    results = [getattr(kind(**QUICK), method)(X, values).predict(X) for values in (y, y.astype(object))]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("values", [(), (1,), (3,)])
def test_values_keep_their_shape(values):
    X, y = waves(values=values)
    regressor = LoRARegressor(random_state=0, base_epochs=60).fit(X, y)
    assert regressor.predict(X).shape == y.shape
    assert regressor.output_shape_ == values
    assert regressor.score(X, y) > 0.95


# ---------------------------------------------------------------- ranks


@pytest.fixture(scope="module")
def ranked(base):
    X, y = blobs()
    keywords = {"adapter": "dylora", "rank": 4, "active_ranks": [1, 2, 4], "epochs": 10, "random_state": 0}
    return LoRAClassifier(base, **keywords).fit(X, (y + 1) % 3)


def test_the_last_active_rank_is_deployed_first(ranked):
    assert ranked.active_ranks_ == (1, 2, 4)
    assert {a.current_deployment_rank for a in adapters(ranked).values()} == {4, 3}


@pytest.mark.parametrize(("rank", "expected"), [(1, [1, 1]), (2, [2, 2]), (4, [4, 3])])
def test_the_deployment_rank_reaches_every_layer(ranked, rank, expected):
    X, _ = blobs()
    before = ranked.model_.get_parameters()
    assert ranked.set_deployment_rank(rank) is ranked
    assert [a.current_deployment_rank for a in adapters(ranked).values()] == expected
    np.testing.assert_array_equal(ranked.model_.get_parameters(), before)
    # Independent check: at the highest rank, with the components above `rank` set to zero.
    probabilities = ranked.predict_proba(X)
    by_hand = ranked.model_.clone()
    for layer in by_hand.walk().values():
        if isinstance(layer, DyLoRAAdapter):
            layer.lora_layer.matrix_b[rank:] = 0
            layer.set_deployment_rank(layer.max_rank)
    logits = by_hand.predict(X)
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-10)


def test_all_ranks_are_active_unless_some_are_named():
    assert LoRAClassifier(network(), adapter="dylora", rank=3, **QUICK).fit(*blobs()).active_ranks_ == (1, 2, 3)
    assert LoRAClassifier(network(), rank=3, active_ranks=[1], **QUICK).fit(*blobs()).active_ranks_ == ()


@pytest.mark.parametrize(("adapter", "found"), [("dylora", [(4, 3)] * 2 + [()] * 10), ("standard", [()] * 12)])
def test_a_sorted_start_trains_at_the_highest_rank_first(adapter, found, monkeypatch):
    histories = []

    def spy(*arguments, **options):
        histories.append(fit(*arguments, **options))
        return histories[-1]

    monkeypatch.setattr("lora_np.sklearn.trained.fit", spy)
    X, y = blobs()
    keywords = {"rank": 4, "sorted_start": 2, "batch_size": 30, "epochs": 4, "random_state": 0}
    classifier = LoRAClassifier(network(), adapter=adapter, **keywords).fit(X[:90], y[:90])
    assert histories.pop().ranks == found
    classifier.partial_fit(X[:90], y[:90])
    assert histories.pop().ranks == [()] * 3  # goes on without another start


@pytest.mark.parametrize("adapter", ["dylora", "standard"])
def test_a_start_that_does_not_fit_is_refused(adapter):
    # training the base would raise NonFiniteError
    with pytest.raises(ArgumentError, match="sorted_start must be at least 1, got 0"):
        LoRAClassifier(learning_rate=1e300, adapter=adapter, sorted_start=0, **QUICK).fit(*blobs())
    with pytest.raises(ArgumentError, match="the training, which has"):
        LoRAClassifier(network(), adapter="dylora", sorted_start=10**6, **QUICK).fit(*blobs())


def test_one_draw_gives_every_layer_the_rank_that_it_has_when_deployed(ranked):
    first, second = adapters(ranked).values()
    assert (first.active_ranks, second.active_ranks) == ((1, 2, 4), (1, 2, 3))
    single = LoRARegressor(network(1), adapter="dylora", rank=4, **QUICK).fit(*waves())
    first, second = adapters(single).values()
    assert (first.active_ranks, second.active_ranks) == ((1, 2, 3, 4), (1,))
    two = LoRAClassifier(network(2), adapter="dylora", rank=4, active_ranks=[1, 2, 4], **QUICK)
    first, second = adapters(two.fit(blobs()[0], blobs()[1] % 2)).values()
    for quantile in np.linspace(0, 0.999, 50):
        assert second.rank_at(quantile) == min(first.rank_at(quantile), 2)


@pytest.mark.parametrize("rank", [0, 3, 5, "2", 2.0, None])
def test_other_ranks_are_refused_and_change_nothing(ranked, rank):
    ranked.set_deployment_rank(2)
    with pytest.raises(ArgumentError, match="rank must be"):
        ranked.set_deployment_rank(rank)
    assert [a.current_deployment_rank for a in adapters(ranked).values()] == [2, 2]


@pytest.mark.parametrize("adapter", ["standard", "dora"])
def test_other_adapters_have_no_deployment_rank(adapter, base):
    classifier = LoRAClassifier(base, adapter=adapter, **QUICK).fit(*blobs())
    with pytest.raises(InvalidOperationError, match='adapter="dylora"'):
        classifier.set_deployment_rank(1)


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("adapter", KINDS)
def test_a_merged_estimator_has_no_adapters_and_the_same_predictions(adapter, base):
    X, y = blobs()
    classifier = LoRAClassifier(base, adapter=adapter, **QUICK).fit(X, y)
    merged = classifier.merge()
    assert has_adapters(classifier.model_)
    assert not has_adapters(merged.model_)
    np.testing.assert_allclose(merged.predict_proba(X), classifier.predict_proba(X), rtol=1e-10)
    np.testing.assert_array_equal(merged.predict(X), classifier.predict(X))
    assert merged.n_features_in_ == 4
    assert merged.get_params() | {"base": None} == classifier.get_params() | {"base": None}


def test_merging_takes_the_deployment_rank(ranked):
    X, _ = blobs()
    at_each = [ranked.set_deployment_rank(rank).merge().predict_proba(X) for rank in (1, 4)]
    assert np.abs(at_each[0] - at_each[1]).max() > 1e-3
    np.testing.assert_allclose(at_each[1], ranked.predict_proba(X), rtol=1e-10)


def test_a_merged_regressor_predicts_the_same():
    X, y = waves(values=(2,))
    regressor = LoRARegressor(**QUICK).fit(X, y)
    np.testing.assert_allclose(regressor.merge().predict(X), regressor.predict(X), rtol=1e-10)


def test_a_merged_estimator_may_be_fitted_again_but_not_trained_further(base):
    X, y = blobs()
    merged = LoRAClassifier(base, **QUICK).fit(X, y).merge()
    with pytest.raises(InvalidOperationError, match="partial_fit needs adapters, but they have been merged"):
        merged.partial_fit(X, y)
    weights = merged.model_["0"].weight.copy()
    again = merged.fit(X, y)
    np.testing.assert_array_equal(again.model_["0"].base_layer.weight, weights)


# ---------------------------------------------------------------- more samples later


def test_more_samples_train_the_adapters_further(base):
    X, y = blobs(150)
    y = (y + 1) % 3
    classifier = LoRAClassifier(base, rank=3, random_state=0)
    scores = [classifier.partial_fit(X, y, classes=[0, 1, 2]).score(X, y) for _ in range(30)]
    assert scores[0] < 0.9 < scores[-1]
    assert len(classifier.loss_curve_) == 30


def test_after_fit_it_goes_on_where_it_was(base):
    X, y = blobs()
    classifier = LoRAClassifier(base, **QUICK).fit(X, y)
    inside = classifier.model_
    before = inside.get_parameters()
    classifier.partial_fit(X, y)
    assert classifier.model_ is inside
    assert (inside.get_parameters() != before).any()
    before = inside.get_parameters()
    classifier.set_params(learning_rate=0.0).partial_fit(X, y)
    np.testing.assert_array_equal(inside.get_parameters(), before)


@pytest.mark.parametrize(
    "kind", [LoRAClassifier, LoRARegressor, MultiLoRAClassifier, MultiLoRARegressor], ids=lambda kind: kind.__name__
)
def test_each_call_is_one_epoch(kind):
    X, y = blobs()
    estimator = kind(network(3 if issubclass(kind, ClassifierMixin) else 1), random_state=0)
    for calls in (1, 2):
        estimator.partial_fit(X, y, **({"classes": [0, 1, 2]} if issubclass(kind, ClassifierMixin) else {}))
        assert estimator.n_iter_ == calls


def test_each_call_draws_other_ranks():
    X, y = blobs(8)
    classifier = LoRAClassifier(network(), adapter="dylora", rank=3, random_state=0)
    B = classifier.partial_fit(X, y, classes=[0, 1, 2]).model_["0"].lora_layer.matrix_b
    ranks = set()
    for _ in range(20):
        before = B.copy()
        classifier.partial_fit(X, y)
        ranks.add(int((before != B).any(axis=1).sum()))
    assert ranks == {1, 2, 3}


def test_a_batch_need_not_have_every_class():
    X, y = blobs()
    classifier = LoRAClassifier(network(), random_state=0)
    classifier.partial_fit(X[:1], y[:1], classes=[2, 1, 0]).partial_fit(X[1:2], y[1:2])
    np.testing.assert_array_equal(classifier.classes_, [0, 1, 2])
    regressor = LoRARegressor(network(1)).partial_fit(X[:1], [1.0]).partial_fit(X[:1], [2.0])
    assert regressor.predict(X).shape == (90,)


def test_classes_must_be_given_first_and_stay():
    X, y = blobs()
    classifier = LoRAClassifier(network(), **QUICK)
    with pytest.raises(ArgumentError, match="classes must be given in the first call"):
        classifier.partial_fit(X, y)
    with pytest.raises(ArgumentError, match=r"y must contain only the classes \[0, 1, 5\], got 2"):
        classifier.partial_fit(X, y, classes=[0, 1, 5])
    classifier.partial_fit(X, y, classes=[0, 1, 2]).partial_fit(X, y, classes=[2, 1, 0])
    before = classifier.model_.get_parameters()
    with pytest.raises(ArgumentError, match=r"classes must equal those of the first call, \[0, 1, 2\], got \[0, 1\]"):
        classifier.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ArgumentError, match=r"y must contain only the classes \[0, 1, 2\], got 3"):
        classifier.partial_fit(X, y + 1)
    np.testing.assert_array_equal(classifier.model_.get_parameters(), before)


def test_fewer_samples_than_classes_cannot_train_a_base():
    X, y = blobs()
    with pytest.raises(ArgumentError, match="at least 3 samples, one per class, to train the base first, got 2"):
        LoRAClassifier().partial_fit(X[:2], y[:2], classes=[0, 1, 2])
    with pytest.raises(ArgumentError, match="at least 3 samples, one per class, to train a head for the base first, got 2"):
        LoRAClassifier(network(5)).partial_fit(X[:2], y[:2], classes=[0, 1, 2])


def test_values_must_keep_their_shape():
    X, y = waves()
    regressor = LoRARegressor(**QUICK).fit(X, y)
    with pytest.raises(ArgumentError, match=r"y must have shape \(\) for each sample, as in earlier calls, got \(2,\)"):
        regressor.partial_fit(X, np.zeros((60, 2)))


# ---------------------------------------------------------------- refusals


class Odd(Layer):
    def apply(self, x, run):
        raise AssertionError

    vjp = apply

    def estimate_flops(self):
        return 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 2.0}, "rank must be an integer, got 2.0"),
        ({"alpha": np.nan}, "alpha must be finite"),
        ({"alpha": "4"}, "alpha must be a real number"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"base_epochs": 0}, "base_epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"adapter": "vera"}, "adapter must be one of 'standard', 'dylora', 'dora', got 'vera'"),
        ({"adapter": "dylora", "active_ranks": [2, 1]}, "active_ranks must be strictly ascending"),
        ({"adapter": "dylora", "active_ranks": [8]}, "active_ranks must be at most max_rank = 4"),
        ({"learning_rate": "fast"}, "learning_rate must be a real number"),
        ({"optimizer": "adan"}, "optimizer must be one of 'sgd', 'momentum', 'adam', 'adamw', or return an .* got 'adan'"),
        ({"optimizer": float}, "optimizer must be one of .*, or return an Optimizer for a learning rate"),
        (
            {"activation": "relu6"},
            "activation must be an Activation such as .*, or one of 'identity', .*, got 'relu6'",
        ),
        ({"activation": np.tanh}, "activation must be an Activation"),
        ({"class_weight": {0: -1.0}}, "sample_weight must be finite and not negative, got -1.0"),
        ({"class_weight": "equal"}, "class_weight must be a dict, 'balanced' or None, got 'equal'"),
        ({"hidden_layer_sizes": ()}, "hidden_layer_sizes must contain at least one size"),
        ({"hidden_layer_sizes": (0,)}, "each of hidden_layer_sizes must be at least 1"),
        ({"hidden_layer_sizes": None}, "each of hidden_layer_sizes must be an integer"),
        ({"base": "digits"}, "base must be a lora_np layer or None, got 'digits'"),
        ({"base": DenseLayer(5, 3)}, "X must have 5 features, the input size of base, got 4"),
        ({"base": apply_lora(network(), lambda layer: MultiLoRAAdapter(layer, "a", 1))}, "base must not contain adapters"),
        ({"base": Odd(4, 3)}, "targets must leave at least one of the dense layers"),
        ({"base": network(), "targets": ["7"]}, "targets must match dense layers"),
    ],
)
def test_bad_parameters_are_refused_before_anything_changes(parameters, message):
    classifier = LoRAClassifier(network(), **QUICK).set_params(**parameters | {"base": parameters.get("base", None)})
    with pytest.raises(ArgumentError, match=message):
        classifier.fit(*blobs())
    with pytest.raises(NotFittedError):
        classifier.predict(blobs()[0])


def test_a_failed_fit_leaves_the_earlier_one():
    X, y = blobs()
    classifier = LoRAClassifier(network(), **QUICK).fit(X, y)
    before = classifier.predict_proba(X)
    with pytest.raises(ArgumentError):
        classifier.set_params(rank=0).fit(X, y + 1)
    np.testing.assert_array_equal(classifier.predict_proba(X), before)
    np.testing.assert_array_equal(classifier.classes_, [0, 1, 2])


def test_continuous_labels_are_refused():
    X, y = waves()
    with pytest.raises(ValueError, match="Unknown label type"):
        LoRAClassifier().fit(X, y)


def test_without_a_random_state_the_global_generator_stays_alone():
    X, y = np.ones((12, 3)), np.arange(12) % 2
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002 - to check that it is not used
    first, second = (LoRAClassifier(epochs=1, base_epochs=1).fit(X, y) for _ in range(2))
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002
    assert first.model_.get_parameters().tobytes() != second.model_.get_parameters().tobytes()
