"""Bugs planted in lora_np/sklearn."""

from planted.mutant import Mutant

STOPPING = "tests/sklearn/test_stopping.py"
WEIGHTS = "tests/sklearn/test_weights.py"

MUTANTS = [
    Mutant(
        "the network of an estimator is always float64",
        "sklearn/estimator.py",
        "else (np.float64, np.float32)",
        "else np.float64",
        ("tests/sklearn/test_onetask.py::test_without_a_base_the_network_has_the_dtype_of_a_float_x",),
    ),
    Mutant(
        "the hidden layers of an estimator are float64",
        "sklearn/networks.py",
        "activation, dtype=dtype, rng=rng)",
        "activation, rng=rng)",
        ("tests/sklearn/test_onetask.py::test_without_a_base_the_network_has_the_dtype_of_a_float_x",),
    ),
    Mutant(
        "a text classifier adapts one block",
        "sklearn/text_classifier.py",
        "for block in blocks[-2:]",
        "for block in blocks[-1:]",
        ("tests/sklearn/test_text.py::test_the_last_two_blocks_are_adapted",),
    ),
    Mutant(
        "the head of a text classifier starts from normalized embeddings",
        "sklearn/text_classifier.py",
        "normalize=False",
        "normalize=True",
        ("tests/sklearn/test_text.py::test_the_adapters_start_from_a_head_trained_on_the_frozen_encoder",),
    ),
    Mutant(
        "the head of a text classifier does not train with the adapters",
        "sklearn/text_classifier.py",
        "train=[HEAD]",
        "train=[]",
        ("tests/sklearn/test_text.py::test_only_the_adapters_and_the_head_train",),
    ),
    Mutant(
        "weights of samples are ignored",
        "sklearn/trained.py",
        "            weights=samples.weights,\n",
        "",
        (WEIGHTS,),
    ),
    Mutant(
        "initial parameters depend on the number of samples",
        "sklearn/estimator.py",
        "rng, order = self._generator().spawn(2)",
        "rng = order = self._generator()",
        (WEIGHTS,),
    ),
    Mutant(
        "the weight of a class replaces those of its samples",
        "sklearn/onetask.py",
        "by_class * weights",
        "by_class",
        (WEIGHTS,),
    ),
    Mutant(
        "the decision function of two classes is upside down",
        "sklearn/objectives.py",
        "logits[:, 1] - logits[:, 0]",
        "logits[:, 0] - logits[:, 1]",
        (WEIGHTS,),
    ),
    Mutant(
        "logarithms of probabilities overflow",
        "sklearn/objectives.py",
        "shifted = logits - logits.max(axis=-1, keepdims=True)",
        "shifted = logits",
        (WEIGHTS,),
    ),
    Mutant(
        "held-out samples are trained on",
        "sklearn/estimator.py",
        "samples, held_out = split(",
        "_, held_out = split(",
        (STOPPING,),
    ),
    Mutant(
        "held-out samples do not have the shares of classes",
        "sklearn/stopping.py",
        "stratify=strata",
        "stratify=None",
        (STOPPING,),
    ),
    Mutant(
        "held-out samples have the weights of others",
        "sklearn/stopping.py",
        "samples.weights[rows]",
        "samples.weights[: len(rows)]",
        (STOPPING,),
    ),
    Mutant(
        "a warm start begins a new curve",
        "sklearn/estimator.py",
        "np.append(self.loss_curve_, history.epoch_losses)",
        "np.array(history.epoch_losses)",
        (STOPPING,),
    ),
    Mutant(
        "a warm start keeps its network but not its classes",
        "sklearn/onetask.py",
        "labels_of(y, y, self._labels if self._is_warm else None)",
        "labels_of(y, y, None)",
        (STOPPING,),
    ),
    Mutant(
        "ranks depend on the number of samples",
        "sklearn/onetask.py",
        "drawn_from(rng.spawn(1)[0], ranks)",
        "ranks",
        ("tests/sklearn/test_weights.py",),
    ),
]
