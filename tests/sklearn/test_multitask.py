"""Multi-task estimators: routing, labels per task, adding tasks later, merging, and invalid arguments."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, r2_score

from lora_np import SGD, ArgumentError, MultiLoRAAdapter, NonFiniteError, has_adapters
from lora_np.sklearn import LoRAClassifier, LoRARegressor, MultiLoRAClassifier, MultiLoRARegressor

from .conftest import blobs, network

QUICK = {"epochs": 2, "base_epochs": 2, "random_state": 0}


def two_tasks(rows=90):
    """Two tasks whose labels overlap: which of the three blobs it is, and whether it is the first."""
    X, y = blobs(rows)
    tasks = np.where(np.arange(rows) % 2, "three", "first")
    return X, np.where(tasks == "three", y, y == 0), tasks


@pytest.fixture(scope="module")
def fitted(base):
    X, y, tasks = two_tasks()
    return MultiLoRAClassifier(base, epochs=30, random_state=0).fit(X, y, task=tasks)


def adapters(estimator):
    return [layer for layer in estimator.model_.walk().values() if isinstance(layer, MultiLoRAAdapter)]


def test_predictions_need_the_features_of_the_training(fitted):
    before = fitted.n_features_in_
    with pytest.raises(ValueError, match=f"expecting {before} features"):
        fitted.predict(np.zeros((2, before + 1)), task=["three", "first"])
    assert fitted.n_features_in_ == before


# ---------------------------------------------------------------- tasks


def test_each_task_is_learned_on_one_base(fitted, base):
    X, y, tasks = two_tasks()
    assert fitted.score(X, y, task=tasks) > 0.95
    assert fitted.tasks_ == ("first", "three")
    assert [list(a.task_adapters) for a in adapters(fitted)] == [["first", "three"]] * 2
    np.testing.assert_array_equal(adapters(fitted)[0].base_layer.weight, base["0"].weight)


def test_without_a_base_one_is_trained_on_all_tasks():
    X, y, tasks = two_tasks()
    classifier = MultiLoRAClassifier(epochs=30, random_state=0).fit(X, y, task=tasks)
    assert classifier.score(X, y, task=tasks) > 0.95
    assert [path for path, layer in classifier.model_.walk().items() if layer in adapters(classifier)] == [
        "base.hidden1",
        "head",
    ]


def test_a_prediction_is_one_of_the_labels_of_its_task(fitted):
    X, _, _ = two_tasks()
    np.testing.assert_array_equal(fitted.classes_, [0, 1, 2])
    assert {name: labels.tolist() for name, labels in fitted.task_classes_.items()} == {"first": [0, 1], "three": [0, 1, 2]}
    probabilities = fitted.predict_proba(X, task=["first"] * len(X))
    assert (probabilities[:, 2] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert set(fitted.predict(X, task=["first"] * len(X))) == {0, 1}
    assert (fitted.predict_proba(X, task=["three"] * len(X)) > 0).all()


def test_tasks_may_share_no_label():
    X, y, tasks = two_tasks()
    y = np.where(tasks == "three", np.array(["a", "b", "c"])[y], np.where(y == 1, "yes", "no"))
    classifier = MultiLoRAClassifier(epochs=30, random_state=0).fit(X, y, task=tasks)
    assert classifier.classes_.tolist() == ["a", "b", "c", "no", "yes"]
    assert classifier.score(X, y, task=tasks) > 0.95


def test_each_row_goes_through_its_own_task_in_any_order(fitted):
    X, _, tasks = two_tasks()
    mixed = fitted.predict_proba(X, task=tasks)
    for name in ("first", "three"):
        alone = fitted.predict_proba(X[tasks == name], task=tasks[tasks == name])
        np.testing.assert_allclose(alone, mixed[tasks == name], rtol=1e-10)
    assert np.abs(mixed - fitted.predict_proba(X, task=tasks[::-1])).max() > 0.1


@pytest.mark.parametrize("container", [list, tuple, np.array, lambda names: np.array(names, object)])
def test_names_come_in_any_container(container, fitted):
    X, _, tasks = two_tasks()
    expected = fitted.predict(X, task=tasks)
    np.testing.assert_array_equal(fitted.predict(X, task=container(tasks.tolist())), expected)


def test_without_names_there_is_one_task(base):
    X, y = blobs()
    classifier = MultiLoRAClassifier(base, **QUICK).fit(X, y)
    assert classifier.tasks_ == ("default",)
    named = MultiLoRAClassifier(base, **QUICK).fit(X, y, task=["it"] * len(X))
    assert named.tasks_ == ("it",)
    expected = named.predict_proba(X)
    np.testing.assert_array_equal(expected, classifier.predict_proba(X))
    np.testing.assert_array_equal(expected, named.predict_proba(X, task=["it"] * len(X)))


def test_a_layer_that_is_smaller_takes_its_full_rank_with_the_same_scaling():
    X, y, tasks = two_tasks()
    classifier = MultiLoRAClassifier(network(), rank=5, alpha=10.0, **QUICK).fit(X, y, task=tasks)
    classifier.partial_fit(X[:3], y[:3], task=["new"] * 3)
    branches = [[(b.rank, b.scaling) for b in a.task_adapters.values()] for a in adapters(classifier)]
    assert branches == [[(4, 2.0)] * 3, [(3, 2.0)] * 3]


def test_scores_weigh_samples_and_pool_tasks(fitted):
    X, y, tasks = two_tasks()
    wrong = np.where(np.arange(len(y)) < 30, y, 2 - y)
    weights = np.random.default_rng(0).random(len(y))
    found = fitted.score(X, wrong, sample_weight=weights, task=tasks)
    assert found == accuracy_score(wrong, fitted.predict(X, task=tasks), sample_weight=weights)
    assert 0.3 < found < 0.9


# ---------------------------------------------------------------- regression


@pytest.mark.parametrize("values", [(), (2,)])
def test_values_of_each_task(values):
    X = np.random.default_rng(0).standard_normal((80, 4))
    tasks = np.repeat(["up", "down"], 40)
    y = np.where(tasks == "up", 1, -1)[:, np.newaxis] * X[:, : len(values) + 1]
    y = y.reshape(80, *values)
    regressor = MultiLoRARegressor(epochs=60, random_state=0).fit(X, y, task=tasks)
    assert regressor.predict(X, task=tasks).shape == y.shape
    found = regressor.score(X, y, task=tasks)
    assert found > 0.8
    weights = np.linspace(0, 1, 80)
    expected = r2_score(y, regressor.predict(X, task=tasks), sample_weight=weights)
    assert regressor.score(X, y, sample_weight=weights, task=tasks) == expected != found
    merged = regressor.merge("down")
    assert type(merged) is LoRARegressor
    assert not has_adapters(merged.model_)
    np.testing.assert_allclose(merged.predict(X), regressor.predict(X, task=["down"] * 80), rtol=1e-9, atol=1e-12)


def test_more_values_train_further():
    X, y, tasks = two_tasks()
    regressor = MultiLoRARegressor(network(1), random_state=0)
    scores = [regressor.partial_fit(X, y, task=tasks).score(X, y, task=tasks) for _ in range(40)]
    assert scores[-1] > 0.6 > scores[0]
    assert len(regressor.loss_curve_) == 40


# ---------------------------------------------------------------- more samples later


def test_a_new_task_leaves_the_others_as_they_are(base):
    X, y, tasks = two_tasks()
    classifier = MultiLoRAClassifier(base, epochs=20, random_state=0).fit(X, y, task=tasks)
    expected = classifier.predict_proba(X, task=tasks)
    for _ in range(40):
        classifier.partial_fit(X, 2 - blobs()[1], task=["reversed"] * len(X))
    assert classifier.tasks_ == ("first", "three", "reversed")
    assert classifier.score(X, 2 - blobs()[1], task=["reversed"] * len(X)) > 0.9
    np.testing.assert_array_equal(classifier.predict_proba(X, task=tasks), expected)


def test_a_task_may_get_further_classes():
    X, _, _ = two_tasks()
    classifier = MultiLoRAClassifier(network(), random_state=0)
    classifier.partial_fit(X[:2], [0, 1], classes=[0, 1, 2], task=["a", "b"])
    assert {name: labels.tolist() for name, labels in classifier.task_classes_.items()} == {"a": [0], "b": [1]}
    assert classifier.predict_proba(X[:1], task=["a"]).tolist() == [[1, 0, 0]]
    classifier.partial_fit(X[:1], [2], task=["a"])
    assert {name: labels.tolist() for name, labels in classifier.task_classes_.items()} == {"a": [0, 2], "b": [1]}


def test_what_does_not_fit_adds_no_task(base):
    X, y, tasks = two_tasks()
    classifier = MultiLoRAClassifier(base, **QUICK).fit(X, y, task=tasks)
    with pytest.raises(ArgumentError, match=r"y must contain only the classes \[0, 1, 2\], got 7"):
        classifier.partial_fit(X[:1], [7], task=["new"])
    assert classifier.tasks_ == ("first", "three")
    assert [list(a.task_adapters) for a in adapters(classifier)] == [["first", "three"]] * 2


def test_a_new_task_whose_training_diverges_is_not_there(base):
    X, y, tasks = two_tasks()
    classifier = MultiLoRAClassifier(base, optimizer=SGD, **QUICK).fit(X, y, task=tasks)
    with pytest.raises(NonFiniteError):
        classifier.set_params(learning_rate=1e300).partial_fit(X, y, task=["new"] * len(X))
    assert classifier.tasks_ == ("first", "three")
    classifier.set_params(learning_rate=0.01).partial_fit(X, y, task=["new"] * len(X))
    assert classifier.tasks_ == ("first", "three", "new")


def test_classes_must_be_given_first():
    X, y, tasks = two_tasks()
    with pytest.raises(ArgumentError, match="classes must be given"):
        MultiLoRAClassifier().partial_fit(X, y, task=tasks)


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("task", ["first", "three"])
def test_a_task_becomes_a_plain_classifier(task, fitted):
    X, y, tasks = two_tasks()
    current = [a.current_task for a in adapters(fitted)]
    plain = fitted.merge(task)
    assert type(plain) is LoRAClassifier
    assert not has_adapters(plain.model_)
    np.testing.assert_array_equal(plain.classes_, fitted.task_classes_[task])
    expected = fitted.predict_proba(X, task=[task] * len(X))[:, : len(plain.classes_)]
    np.testing.assert_allclose(plain.predict_proba(X), expected, rtol=1e-9)
    assert plain.score(X[tasks == task], y[tasks == task]) == fitted.score(
        X[tasks == task], y[tasks == task], task=tasks[tasks == task]
    )
    assert [a.current_task for a in adapters(fitted)] == current
    assert not hasattr(plain, "tasks_")
    assert plain.rank == fitted.rank
    plain.fit(X, y == 1)  # an ordinary estimator, with the merged network as its base
    assert plain.score(X, y == 1) > 0.5


@pytest.mark.parametrize("kind", [MultiLoRAClassifier, MultiLoRARegressor])
def test_an_unknown_task_cannot_be_merged(kind):
    X, y, tasks = two_tasks()
    with pytest.raises(NotFittedError):
        kind().merge("first")
    with pytest.raises(ArgumentError, match="task must be one of 'first', 'three' for each sample, got 'other'"):
        kind(**QUICK).fit(X, y, task=tasks).merge("other")


# ---------------------------------------------------------------- refusals


def test_a_task_without_adapters_is_named(fitted):
    X, y, _ = two_tasks()
    message = "task must be one of 'first', 'three' for each sample, got 'fifth'"
    for call in (fitted.predict, fitted.predict_proba, lambda X, task: fitted.score(X, y[:2], task=task)):
        with pytest.raises(ArgumentError, match=message):
            call(X[:2], task=["first", "fifth"])


def test_several_tasks_must_be_told_apart(fitted):
    with pytest.raises(ArgumentError, match="task must be one of 'first', 'three' for each sample, got None"):
        fitted.predict(blobs()[0])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("first", r"task must have shape \(90,\), one name per sample, got \(\)"),
        (["first"], r"task must have shape \(90,\), one name per sample, got \(1,\)"),
        ([["first"]] * 90, r"task must have shape \(90,\), one name per sample, got \(90, 1\)"),
        ([None] * 90, "task must contain strings that are not blank, got None"),
        ([1] * 90, "task must contain strings that are not blank, got 1"),
        ([" "] * 90, "task must contain strings that are not blank, got ' '"),
    ],
)
def test_names_that_are_none_are_refused(task, message, fitted):
    X, y, _ = two_tasks()
    with pytest.raises(ArgumentError, match=message):
        MultiLoRAClassifier(network()).fit(X, y, task=task)
    with pytest.raises(ArgumentError, match=message):
        fitted.predict(X, task=task)


@pytest.mark.parametrize(
    ("kind", "several"), [(LoRARegressor, True), (MultiLoRARegressor, True), (MultiLoRAClassifier, False)]
)
def test_the_tags_say_who_takes_several_targets(kind, several):
    assert kind().__sklearn_tags__().target_tags.multi_output == several
