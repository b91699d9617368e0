"""Estimators with scikit-learn's interface; they need the extra ``lora_np[sklearn]``."""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError('lora_np.sklearn needs scikit-learn: pip install "lora_np[sklearn]"') from error

from .mlp import from_sklearn as from_sklearn
from .mlp import to_sklearn as to_sklearn
from .multitask import MultiLoRAClassifier as MultiLoRAClassifier
from .multitask import MultiLoRARegressor as MultiLoRARegressor
from .onetask import LoRAClassifier as LoRAClassifier
from .onetask import LoRARegressor as LoRARegressor
from .sentence_embedder import SentenceEmbedder as SentenceEmbedder
from .text_classifier import LoRATextClassifier as LoRATextClassifier
from .transformer import LoRATransformer as LoRATransformer
