"""Hugging Face's BertModel and LlamaForCausalLM in eager float32. Batches are padded; full ones have no attention mask."""

import torch
import transformers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from ..decoders import PromptProblem
from ..encoders import SentenceProblem
from ..problem import Array

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


def bert(problem: SentenceProblem) -> BertModel:
    """The problem's encoder, without dropout."""
    config = problem.encoder.config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertModel(BertConfig(**config), add_pooling_layer=False)
    model.load_state_dict({name: torch.tensor(array) for name, array in problem.encoder.weights.items()})
    return model.eval()


def inputs(problem: SentenceProblem) -> dict[str, torch.Tensor]:
    present = problem.ids >= 0
    ids = {"input_ids": torch.tensor(problem.ids * present)}
    return ids if present.all() else ids | {"attention_mask": torch.tensor(present.astype(int))}


class Encoder:
    """The whole model."""

    def __init__(self, problem: SentenceProblem) -> None:
        self.model, self.inputs = bert(problem), inputs(problem)

    def forward(self) -> Array:
        with torch.no_grad():
            return self.model(**self.inputs).last_hidden_state.numpy()


class Decoder:
    """LlamaForCausalLM."""

    def __init__(self, problem: PromptProblem) -> None:
        config = LlamaConfig(**problem.decoder.config, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        self.model, self.new = LlamaForCausalLM(config).eval(), problem.new
        weights = {name: torch.tensor(array) for name, array in problem.decoder.weights.items()}
        self.model.load_state_dict(weights, strict=False)
        self.model.tie_weights()
        self.ids = torch.tensor(problem.ids)

    def tokens(self) -> Array:
        with torch.no_grad():
            tokens = self.model.generate(
                self.ids, attention_mask=torch.ones_like(self.ids), max_new_tokens=self.new, do_sample=False
            )
        return tokens[:, self.ids.shape[1] :].numpy()
