"""A transformer from texts to sentence embeddings."""

from __future__ import annotations

from typing import Any, Self, final

from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from .._typing import Array
from .._validation import positive_int
from ..models.heads import SentenceEncoder
from ..text import predict_by_length
from .texts import Tokenize, checked_texts, encoder_and_tokenizer, token_ids, with_text_input


@final
class SentenceEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Sentence embeddings by a pretrained encoder: the mean of the hidden states, scaled to length 1.

    It learns nothing from the texts: `fit` only loads the model, and `transform` does so if `fit` has not been called.

    Parameters
    ----------
    model : path or BertModel
        A folder for `lora_np.load_pretrained`, or an encoder, which may have adapters.
    tokenizer : path or callable, optional
        A tokenizer.json, a folder that contains one, or a function from a list of texts to token ids, (texts, tokens),
        padded at the end with -1. By default, the tokenizer in the folder of the model.
    batch_size : int, default 64
        Texts per pass. Texts of similar length share a pass.

    Notes
    -----
    Copies, clones and pickles contain the parameters, not what was loaded: with a folder, they are small.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from lora_np.sklearn import SentenceEmbedder
    >>> pipeline = make_pipeline(SentenceEmbedder("minilm"), LogisticRegression())
    >>> pipeline.fit(["good", "bad"], [1, 0]).predict(["excellent"])  # doctest: +SKIP
    array([1])
    """

    _cache: tuple[Any, Any, SentenceEncoder, Tokenize] | None = None

    def __init__(self, model: Any, tokenizer: Any = None, *, batch_size: int = 64) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters and the texts, and load the model.

        Parameters
        ----------
        X : sequence of str
        y : ignored

        Raises
        ------
        ArgumentError
            If a parameter is invalid, or `X` is not a one-dimensional, non-empty sequence of strings.
        """
        positive_int("batch_size", self.batch_size)
        self._loaded()
        checked_texts(X)
        return self

    def transform(self, X: Any) -> Array:
        """The embedding of each text, shape (texts, features).

        Parameters
        ----------
        X : sequence of str
            Texts with more tokens than the model has positions are truncated, unless the tokenizer is a function.
        """
        model, tokenize = self._loaded()
        ids = token_ids(checked_texts(X), tokenize, model)
        return predict_by_length(model, ids, batch_size=self.batch_size)

    def _loaded(self) -> tuple[SentenceEncoder, Tokenize]:
        """The model and the tokenizer, loaded on first use, and again if a parameter has changed."""
        cache = self._cache
        if cache is None or cache[0] is not self.model or cache[1] is not self.tokenizer:
            encoder, tokenize = encoder_and_tokenizer(self.model, self.tokenizer)
            self._cache = cache = self.model, self.tokenizer, SentenceEncoder(encoder), tokenize
        return cache[2:]

    @property
    def _n_features_out(self) -> int:
        return self._loaded()[0].output_size

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_cache"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return with_text_input(tags)
