"""A classifier of texts: a pretrained encoder with adapters, and a head."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO, ClassVar, Self, final

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from .._typing import Array, Generator
from .._validation import positive_int
from ..adapters import DyLoRAAdapter, StandardLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError
from ..functions.activations import softmax
from ..models.adapting import apply_lora, without_adapters
from ..models.bert import DOWN, UP, BertBlock, BertModel, Q, V
from ..models.finding import find, has_adapters
from ..models.heads import BODY, HEAD, SentenceEncoder, SequenceClassifier
from ..text import predict_by_length
from ..training.history import History
from ..training.nested_dropout import RankSchedule, shared_rank
from ..training.optimizers import Adam
from ..training.schedules import LinearDecay
from ..training.sorted_start import SortedStart
from . import files
from .objectives import Classes, Samples, log_softmax, weights_of
from .one_adapter import OneAdapterEstimator
from .texts import Tokenize, checked_texts, encoder_and_tokenizer, token_ids, tokenizer_of, with_text_input
from .trained import store

ADAPTED = (Q, V, UP, DOWN)
"""The layers of a block that are adapted by default."""


@final
class LoRATextClassifier(ClassifierMixin, OneAdapterEstimator):
    """A classifier of texts: a frozen pretrained encoder with trainable adapters, and a linear head on mean pooling.

    `fit` trains the head on the features of the frozen encoder, then the adapters and the head together. In both parts, the
    learning rate decays linearly to zero.

    Parameters
    ----------
    model : path or BertModel
        A folder for `lora_np.load_pretrained`, or an encoder, which is copied, not changed.
    tokenizer : path or callable, optional
        A tokenizer.json, a folder that contains one, or a function from a list of texts to token ids, (texts, tokens),
        padded at the end with -1. By default, the tokenizer in the folder of the model.
    adapter : {"dylora", "lora"}, default "dylora"
        DyLoRA, which can be deployed at each of its ranks, or LoRA.
    rank : int, default 8
        The rank of each adapter; a smaller layer uses its full rank, with the same scaling.
    alpha : float, default -1
        The scaling is alpha / rank; a negative alpha means the rank.
    active_ranks : sequence of int, optional
        The ranks that DyLoRA trains, ascending, at most `rank`; all of them by default. The last one is deployed initially.
        LoRA ignores this parameter.
    sorted_start : float or int, optional
        For DyLoRA: the fraction of the training steps, in (0, 1), or their number, at least 1, to train at the highest rank
        before the components are sorted, and each row trains at a separate rank; see `lora_np.training.SortedStart`. By
        default, each step trains at one drawn rank.
    targets : names, optional
        Which layers to adapt, as in `lora_np.apply_lora`; by default, query, value and both feed-forward layers of the last
        two blocks.
    optimizer : callable, default Adam
        Returns an Optimizer for a learning rate, for example ``functools.partial(AdamW, weight_decay=0.1)``.
    learning_rate : float, default 0.002
        The learning rate of the first step.
    epochs : int, default 3
        Epochs of adapters and head.
    head_epochs : int, default 30
        Epochs of the head alone, which are cheap: the features are computed once.
    batch_size : int, default 24
    random_state : int, numpy.random.RandomState or None, default None
        With None, each fit is different. NumPy's global generator is never used.
    verbose : bool, default False
        Whether to show progress if standard error is a terminal.

    Attributes
    ----------
    classes_ : array
        The classes, ascending.
    model_ : SequenceClassifier
        The adapted network, from token ids to logits.
    active_ranks_ : tuple of int
        The ranks that can be deployed; empty unless `adapter` is ``"dylora"``.
    loss_curve_ : array of float
        The mean loss of each epoch of adapters and head.

    Examples
    --------
    >>> from lora_np.sklearn import LoRATextClassifier
    >>> classifier = LoRATextClassifier("minilm", random_state=0)
    >>> classifier.fit(["good", "bad"], ["praise", "complaint"]).predict(["excellent"])  # doctest: +SKIP
    array(['praise'], dtype='<U9')
    """

    _adapters: ClassVar[Mapping[str, Any]] = {"dylora": DyLoRAAdapter, "lora": StandardLoRAAdapter}
    model_: SequenceClassifier
    _tokenize: Tokenize

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        adapter: str = "dylora",
        rank: int = 8,
        alpha: float | None = -1.0,
        active_ranks: Any = None,
        sorted_start: Any = None,
        targets: Any = None,
        optimizer: Any = Adam,
        learning_rate: float = 0.002,
        epochs: int = 3,
        head_epochs: int = 30,
        batch_size: int = 24,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        store(self, locals())

    # ---------------------------------------------------------------- training

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the head, then adapters and head.

        Parameters
        ----------
        X : sequence of str
            Texts with more tokens than the model has positions are truncated, unless the tokenizer is a function.
        y : array-like, shape (texts,)
            Labels.
        sample_weight : array-like, shape (texts,), optional
            As in `LoRAClassifier.fit`.

        Raises
        ------
        ArgumentError
            If a parameter is invalid, or `X` is not a one-dimensional, non-empty sequence of strings.
        ValueError
            If `y` does not contain one label for each text.
        NonFiniteError
            If training diverges.
        """
        self._check_parameters()
        rng, texts, y = self._generator(), checked_texts(X), validate_data(self, y=y)
        check_consistent_length(texts, y)
        check_classification_targets(y)
        encoder, tokenize = encoder_and_tokenizer(self.model, self.tokenizer)
        classes = Classes(np.unique(y))
        weights = weights_of(sample_weight, len(texts))
        samples = Samples(token_ids(texts, tokenize, encoder), y, classes, weights=weights)
        model = self._with_head(encoder.clone() if encoder is self.model else encoder, samples, rng)
        targets = _default_targets(model) if self.targets is None else self.targets
        adapted = apply_lora(model, self._factory(samples, rng), targets, train=[HEAD])
        history = self._descend_to_zero("adapters", adapted, samples, self.epochs, rng, self._ranks())
        self.model_, self.classes_, self._tokenize = adapted, classes.labels, tokenize
        self.active_ranks_, self.loss_curve_ = self._trained_ranks(), np.array(history.epoch_losses)
        return self

    def _with_head(self, encoder: BertModel, samples: Samples, rng: Generator) -> SequenceClassifier:
        """The encoder with a head that has been trained on its features."""
        model = SequenceClassifier(encoder, samples.objective.outputs, rng=rng)
        features = predict_by_length(SentenceEncoder(encoder, normalize=False), samples.X)
        self._descend_to_zero("head", model.children()[HEAD], replace(samples, X=features), self.head_epochs, rng)
        return model

    def _descend_to_zero(
        self,
        label: str,
        model: Layer,
        samples: Samples,
        epochs: int,
        rng: Generator,
        ranks: RankSchedule | SortedStart = shared_rank,
    ) -> History:
        """As `_descend`, with a new optimizer whose learning rate decays linearly to zero."""
        return self._descend(label, model, samples, self._new_optimizer(), epochs, rng, LinearDecay(), ranks)

    def _check_parameters(self) -> None:
        for name in ("epochs", "head_epochs", "batch_size"):
            positive_int(name, getattr(self, name))
        self._check_adapter()
        self._new_optimizer()
        if isinstance(self.model, BertModel) and has_adapters(self.model):
            raise ArgumentError("model must not contain adapters; lora_np.merge_in_place merges them into its weights")

    # ---------------------------------------------------------------- prediction

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, shape (texts, classes)."""
        return softmax(self._logits(X))

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithm of the probability of each class, shape (texts, classes); finite where probabilities are zero."""
        return log_softmax(self._logits(X))

    def predict(self, X: Any) -> Array:
        """The most probable class of each text."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def _logits(self, X: Any) -> Array:
        check_is_fitted(self, "model_")
        return predict_by_length(self.model_, token_ids(checked_texts(X), self._tokenize, self.model_))

    # ---------------------------------------------------------------- files

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Save the fitted classifier to an npz file, without pickle; `lora_np.load_layer` loads only `model_` from it.

        The file contains the whole network, with the encoder, but only the path of the tokenizer. `lora_np.io.save_peft`
        saves the adapters of `model_` alone.

        Parameters
        ----------
        file : path or binary stream
            A path is replaced only when the new file is complete.

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        NotSupportedError
            If a parameter or a label cannot be represented in JSON, such as a tokenizer that is a function.

        Notes
        -----
        Not saved is a `random_state` that is an object.
        """
        check_is_fitted(self, "model_")
        parameters = self.get_params(deep=False)
        if isinstance(self.model, Layer):
            parameters.pop("model")
        files.write(self, file, parameters)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO, *, tokenizer: Any = None) -> Self:
        """Load a fitted classifier that `save` wrote.

        If `model` was an encoder, it is now a copy of the one inside `model_`.

        Parameters
        ----------
        file : path or binary stream
        tokenizer : path or callable, optional
            Replaces the tokenizer of the file, whose path may no longer exist.

        Raises
        ------
        FormatError
            If the file is damaged, or does not contain a classifier of this kind, or if there is no tokenizer at its path.
        """
        estimator = files.load(cls, file, cls._check_parameters, _encoder_in)
        if tokenizer is not None:
            estimator.tokenizer = tokenizer
        estimator._tokenize = tokenizer_of(estimator.model, estimator.tokenizer, estimator.model_.positions)
        return estimator

    def __sklearn_tags__(self) -> Any:
        return with_text_input(super().__sklearn_tags__())


def _default_targets(model: SequenceClassifier) -> list[str]:
    blocks = list(find(model, BertBlock))
    return [f"{block}.{name}" for block in blocks[-2:] for name in ADAPTED]


def _encoder_in(model: Layer, said: Mapping[str, Any]) -> dict[str, Any]:
    """The parameter `model` of a saved classifier, unless the file has it as a path."""
    if not isinstance(model, SequenceClassifier):
        raise ArgumentError(f"the network must be a SequenceClassifier, got {model!r}")
    return {} if "model" in said["parameters"] else {"model": without_adapters(model.children()[BODY]).clone()}
