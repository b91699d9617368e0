"""Plant bugs one at a time and check that the tests catch each of them.

    python tests/mutants.py [--list] [-k NAME] [--jobs N]

Each mutant is one textual change in the library. The library and its tests are copied to a temporary folder, the change is
made there, and some of the tests run until the first failure. The exit code is 1 if a bug survives, if the text to replace
does not occur exactly once, or if the tests fail without a bug.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

CONTRACT = "tests/layers/test_contract.py"
BASE = "tests/layers/test_base.py"
DENSE = "tests/layers/test_dense.py"
LORA = "tests/layers/test_lora.py"
SEQUENTIAL = "tests/layers/test_sequential.py"
ACTIVATION = "tests/layers/test_activation.py"
ADAPTERS = "tests/adapters/test_contract.py"
STANDARD = "tests/adapters/test_standard.py"
DYLORA = "tests/adapters/test_dylora.py"
MULTILORA = "tests/adapters/test_multilora.py"
MIXED = "tests/adapters/test_mixed.py"
DORA = "tests/adapters/test_dora.py"
VERA = "tests/adapters/test_vera.py"
LOSSES = "tests/test_losses.py"
INTERRUPTS = "tests/test_interrupts.py"
TESTING = "tests/test_testing.py"
CALLS = "tests/fuzz/test_fuzz.py"
VALIDATION = "tests/test_validation.py"
CHECKPOINTS = "tests/test_distributed.py"
THREADS = "tests/test_threads.py"
ATOMIC = "tests/test_atomic_file.py"
HOSTILE = "tests/io/test_hostile_npz.py"
KERNELS = "tests/test_kernels.py"
PACKING = "tests/layers/test_packing.py"
RUN = "tests/test_run.py"
ADAPTING = "tests/test_adapting.py"
MODEL = "tests/test_model.py"
TRAINING = "tests/test_training.py"
WEIGHTS = "tests/test_adapter_weights.py"
WHOLE = "tests/io/test_peft_whole.py"
MERGE_WHOLE = "tests/io/test_merge_whole.py"
PATTERNS = "tests/io/test_patterns.py"
BRANCHES = "tests/adapters/test_branches.py"
OPTIMIZERS = "tests/test_optimizers.py"
ATTENTION = "tests/layers/test_attention.py"
NORMS = "tests/layers/test_normalization.py"
SEQUENCES = "tests/test_sequences.py"
ENCODERS = "tests/models/test_bert.py"
DECODERS = "tests/models/test_decoders.py"
GENERATION = "tests/models/test_generation.py"
DECODER_FILES = "tests/io/test_pretrained_decoders.py"
NEXT = "tests/models/test_next_token.py"
GGUF_LLAMA = "tests/io/test_gguf_llama.py"
GGUF_TEXT = "tests/test_text_gguf.py"
GENERATE = "tests/cli/test_generate.py"
STORED = "tests/test_stored.py"
GGUF = "tests/io/test_gguf.py"
INSPECT = "tests/cli/test_toolbox_inspect.py"
TRUNCATING = "tests/test_truncating.py"
COMBINING = "tests/test_combining.py"
EXTRACT = "tests/io/test_extract.py"
MAIN = "tests/cli/test_main.py"
COMPLETION = "tests/cli/test_completion.py"
STEPS = (f"{DYLORA}::test_each_component_is_stepped_only_by_its_own_gradients",)


class Mutant(NamedTuple):
    """A bug: its name, the file under lora_np, the exact text, its replacement, and the tests of which one must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    # ---------------------------------------------------------------- trap 1: the orientation of the factors
    Mutant(
        "trap 1: dA formed from the transposed product",
        "layers/lora.py",
        "dA = sum_outer(dh, x).T",
        "dA = sum_outer(dh, x).reshape(len(A), -1)",
        (LORA, STANDARD),
    ),
    Mutant(
        "trap 1: dB formed from the transposed product",
        "layers/lora.py",
        "dB = sum_outer(h, dy)",
        "dB = sum_outer(dy, h).reshape(-1, dy.shape[-1])",
        (LORA, STANDARD),
    ),
    Mutant(
        "trap 1: dX of the branch with A read row by row",
        "layers/lora.py",
        "dx = product(dh, A.T) if inputs",
        "dx = product(dh, A.reshape(A.shape[1], -1)) if inputs",
        (LORA, STANDARD),
    ),
    Mutant(
        "trap 1: dW of a fully connected layer in the other layout",
        "layers/dense.py",
        "dW = self.in_layout(sum_outer(x, dz))",
        "dW = sum_outer(x, dz).reshape(self.weight.shape)",
        (DENSE,),
    ),
    # ---------------------------------------------------------------- trap 2: merging
    Mutant(
        "trap 2: the merged weight in the other layout",
        "layers/dense.py",
        'self.in_layout(real_array("matrix", matrix))',
        'real_array("matrix", matrix).reshape(self.weight.shape)',
        (DENSE,),
    ),
    Mutant(
        "trap 2: merging into a shallow copy",
        "layers/dense.py",
        "twin = self.clone()",
        'twin = __import__("copy").copy(self)',
        (DENSE,),
    ),
    Mutant(
        "trap 2: merging subtracts",
        "adapters/additive.py",
        "base.with_matrix(base.matrix + chosen",
        "base.with_matrix(base.matrix - chosen",
        (STANDARD,),
    ),
    Mutant(
        "merging without the scaling",
        "layers/lora.py",
        "return s * (A @ B)  #",
        "return A @ B  #",
        (LORA, STANDARD),
    ),
    Mutant(
        "merging at the full rank whatever the deployment rank",
        "adapters/additive.py",
        "merge_weights(rank=chosen.rank)",
        "merge_weights()",
        (DYLORA,),
    ),
    Mutant(
        "merging at a drawn rank",
        "adapters/additive.py",
        "self.select(INFERENCE)",
        "self.select(self.new_run(np.empty((0, self.input_size)), training=self.is_training))",
        (f"{DYLORA}::test_merging_takes_the_deployment_rank_whatever_the_mode",),
    ),
    Mutant(
        "merging a base with an activation",
        "adapters/base.py",
        "if base.activation != identity:",
        "if False:",
        (f"{ADAPTERS}::test_what_cannot_be_merged_is_refused",),
    ),
    Mutant(
        "merging the current task instead of the named one",
        "adapters/multilora.py",
        "base.with_matrix(base.matrix + branch.merge_weights())",
        "base.with_matrix(base.matrix + self.lora_layer.merge_weights())",
        (MULTILORA,),
    ),
    # ---------------------------------------------------------------- the command line
    Mutant(
        "every command is imported for any of them",
        "cli/__init__.py",
        "for name in first if named else",
        "for name in VERBS if named else",
        (MAIN,),
    ),
    Mutant(
        "an unknown command gets no hint",
        "cli/__init__.py",
        "close = get_close_matches(first[0], VERBS, n=1)",
        "close = []",
        (MAIN,),
    ),
    Mutant(
        "bash completes options where none was begun",
        "cli/completion.py",
        '[[ "$word" != -* ]] ||',
        "true &&",
        (COMPLETION,),
    ),
    Mutant(
        "brackets in the description of an option for zsh",
        "cli/completion.py",
        'for character in r"\\[]":',
        'for character in "":',
        (COMPLETION,),
    ),
    Mutant(
        "an extraction without power iterations",
        "io/extract.py",
        "for _ in range(ITERATIONS + 1)",
        "for _ in range(1)",
        (EXTRACT,),
    ),
    Mutant(
        "the energy of an extraction relative to what was found",
        "io/extract.py",
        "total = change.squares if basis < full else",
        "total =",
        (EXTRACT,),
    ),
    Mutant(
        "the rank of an extraction does not double",
        "io/extract.py",
        "if width == limit or enough.any():",
        "if True:",
        (EXTRACT,),
    ),
    Mutant(
        "an extraction of weights as in Conv1D",
        "io/extract.py",
        "return self._by_columns(Z) if self._transposed else self._by_rows(Z)",
        "return self._by_rows(Z) if self.shape[0] != self.shape[1] else self._by_columns(Z)",
        (EXTRACT,),
    ),
    Mutant(
        "embeddings are approximated",
        "io/extract.py",
        "if not EMBEDDING.fullmatch(path)",
        "",
        (EXTRACT,),
    ),
    Mutant(
        "the windows of a transposed product overlap",
        "io/extract.py",
        "right[start : start + len(D)]",
        "right[: len(D)]",
        (EXTRACT,),
    ),
    Mutant(
        "changes beyond the first window are not seen",
        "io/extract.py",
        "for start in range(0, new.info(key).size, WINDOW):",
        "for start in range(0, min(1, new.info(key).size), WINDOW):",
        (EXTRACT,),
    ),
    Mutant(
        "trimming keeps the smallest elements",
        "factors/combining.py",
        "np.argpartition(np.abs(tensor)",
        "np.argpartition(-np.abs(tensor)",
        (COMBINING,),
    ),
    Mutant(
        "dare does not rescale",
        "factors/combining.py",
        " < settings.density) / settings.density",
        " < settings.density)",
        (COMBINING,),
    ),
    Mutant(
        "the majority of values without their sum",
        "factors/combining.py",
        'votes = tensors if settings.majority_sign == "total" else',
        "votes =",
        (COMBINING,),
    ),
    Mutant(
        "a tie of signs is negative",
        "factors/combining.py",
        "votes.sum(axis=0) >= 0",
        "votes.sum(axis=0) > 0",
        (COMBINING,),
    ),
    Mutant(
        "the mean over all adapters instead of those that agree",
        "factors/combining.py",
        "np.maximum(agree.sum(axis=0), 1)",
        "len(tensors)",
        (COMBINING,),
    ),
    Mutant(
        "negative weights lose their sign",
        "factors/combining.py",
        "np.where(scales < 0, -roots, roots)",
        "roots",
        (COMBINING,),
    ),
    Mutant(
        "the first pattern of weights does not win",
        "factors/combining.py",
        "weights = matching[0]",
        "weights = matching[-1]",
        (COMBINING,),
    ),
    Mutant(
        "a combination without the scaling of biases",
        "factors/whole.py",
        "weights[path][number] * one.layers[path].scaling / layers",
        "weights[path][number] / layers",
        (COMBINING,),
    ),
    Mutant(
        "a whole tensor of several adapters is taken from the last",
        "factors/whole.py",
        "if not np.array_equal(whole.setdefault(key, tensor), tensor):",
        "if whole.update({key: tensor}):",
        (COMBINING,),
    ),
    Mutant(
        "svd keeps the sum of the ranks",
        "factors/combining.py",
        '(largest if self.method == "svd" else limit)',
        "limit",
        (COMBINING,),
    ),
    Mutant(
        "a budget spent by the ratio alone",
        "factors/budget.py",
        "    search(0, [], budget, 0.0)\n",
        "\n",
        (TRUNCATING,),
    ),
    Mutant(
        "a budget spent without a price",
        "factors/budget.py",
        "shortfall += float(losses[number][count]) + price",
        "shortfall += float(losses[number][count]) + 0 * price",
        (TRUNCATING,),
    ),
    Mutant(
        "the search for ranks stops too early",
        "factors/budget.py",
        "if more >= best:",
        "if more > 0:",
        (TRUNCATING,),
    ),
    Mutant(
        "a budget by singular values instead of energies",
        "factors/budget.py",
        "np.square(sigma[1:], dtype=float)",
        "sigma[1:].astype(float)",
        (TRUNCATING,),
    ),
    Mutant(
        "components without effect use up a budget",
        "factors/budget.py",
        "order = order[values[order] > 0]",
        "order = order[::1]",
        (TRUNCATING,),
    ),
    Mutant(
        "a budget without an upper bound",
        "factors/rank_goal.py",
        "best_ranks([sigma[: self.max_rank] for sigma in spectra]",
        "best_ranks(list(spectra)",
        (TRUNCATING,),
    ),
    Mutant(
        "a ratio to the energy",
        "factors/rank_goal.py",
        "sigma >= sigma[0] / self.value",
        "sigma**2 >= sigma[0] ** 2 / self.value",
        (TRUNCATING,),
    ),
    Mutant(
        "inputs choose the order but not the directions",
        "factors/surgery.py",
        "if X is None:\n        return _Components(Q @ U",
        "if True:\n        return _Components(Q @ U",
        (TRUNCATING,),
    ),
    Mutant(
        "the update for inputs without its scaling",
        "factors/surgery.py",
        "P = layer.scaling * (layer.matrix_a",
        "P = (layer.matrix_a",
        (TRUNCATING,),
    ),
    Mutant(
        "a bias is not rescaled with its layer",
        "factors/surgery.py",
        "before[path] / layers[path].scaling * c if path in before else c",
        "c",
        (TRUNCATING,),
    ),
    Mutant(
        "an error in one of several files goes unnoticed",
        "cli/inspect.py",
        'return 1 if any("error" in report for report in reports) else 0',
        "return 0",
        (INSPECT,),
    ),
    Mutant(
        "folders below an adapter are not searched",
        "cli/inspect.py",
        "folders.sort(key=natural)",
        "folders.clear()",
        (INSPECT,),
    ),
    Mutant(
        "modules of different names are one",
        "cli/_reports.py",
        're.sub(r"\\d+", "*", layer["path"])',
        're.sub(r"\\w+", "*", layer["path"])',
        (INSPECT,),
    ),
    Mutant(
        "metadata of any length is shown",
        "cli/_reports.py",
        "if len(text) <= LONGEST else",
        "if True else",
        (INSPECT,),
    ),
    # ---------------------------------------------------------------- trap 3: the training helper
    Mutant(
        "trap 3: the training helper ignores its loss",
        "training/nested_dropout.py",
        "descent = Descent(adapter, loss, optimizer)",
        'descent = Descent(adapter, __import__("lora_np").MeanSquaredError(), optimizer)',
        (f"{DYLORA}::test_trap_3_training_lowers_the_loss_that_it_is_given_at_every_rank",),
    ),
    Mutant(
        "trap 3: training without backward",
        "training/step.py",
        "layer.backward(dy, need_input_grad=False)",
        "pass",
        (f"{DYLORA}::test_trap_3_training_lowers_the_loss_that_it_is_given_at_every_rank",),
    ),
    Mutant(
        "the training helper keeps its mode",
        "training/nested_dropout.py",
        "    with training_mode(adapter, True), Interrupts()",
        "    adapter.train()\n    with Interrupts()",
        (f"{DYLORA}::test_training_runs_in_training_mode_and_gives_the_mode_back",),
    ),
    Mutant(
        "parameters with a loss that is not finite are kept",
        "training/step.py",
        "self._go_back()\n",
        "pass\n",
        ("tests/test_descent.py",),
    ),
    # ---------------------------------------------------------------- trap 4: modes
    Mutant(
        "trap 4: evaluation draws ranks",
        "base/listening.py",
        "(rank=_drawn(listeners)) if training and rank is None else",
        "drawn = _drawn(listeners) if rank is None else None",
        (f"{DYLORA}::test_trap_4_evaluation_mode_takes_the_deployment_rank_in_a_whole_model",),
    ),
    Mutant(
        "trap 4: forward always trains",
        "base/layer.py",
        "tasks, rank, self._is_training)",
        "tasks, rank, True)",
        (f"{CONTRACT}::test_evaluation_mode_draws_no_random_number",),
    ),
    Mutant(
        "trap 4: predict in the layer's mode",
        "base/layer.py",
        "rank=rank, keep=False)",
        "rank=rank, training=self.is_training, keep=False)",
        (f"{CONTRACT}::test_predict_draws_no_random_number",),
    ),
    Mutant(
        "trap 4: the mode does not reach the layers inside",
        "base/training_mode.py",
        "for layer in self.walk().values():\n            layer._is_training = mode",
        "self._is_training = mode",
        (f"{CONTRACT}::test_the_mode_reaches_every_layer_inside",),
    ),
    Mutant(
        "trap 4: a model does not pass its mode on",
        "layers/composite.py",
        "            y, cache = self._layers[name].apply(",
        "            run = run._replace(training=False)\n            y, cache = self._layers[name].apply(",
        (SEQUENTIAL,),
    ),
    Mutant(
        "trap 4: an adapter does not pass its mode on to its base",
        "adapters/additive.py",
        "self.base_layer.apply(x, run)",
        "self.base_layer.apply(x, run._replace(training=False))",
        (f"{ADAPTERS}::test_the_mode_of_a_pass_reaches_base_and_branch",),
    ),
    Mutant(
        "modes are not restored after an error",
        "base/training_mode.py",
        "    try:\n        yield\n    finally:\n        for inner, mode in kept:\n            inner",
        "    yield\n    for inner, mode in kept:\n        inner",
        (BASE,),
    ),
    # ---------------------------------------------------------------- trap 5: tasks
    Mutant(
        "trap 5: backward after a switch of the task",
        "base/layer.py",
        'self._pass.check(self.layer_name, "backward")',
        "pass",
        (MULTILORA,),
    ),
    Mutant(
        "trap 5: a step after a switch of the task",
        "base/layer.py",
        'self._pending[1].check(self.layer_name, "a step")',
        "pass",
        (MULTILORA,),
    ),
    Mutant(
        "trap 5: a switch inside a model goes unnoticed",
        "base/memory.py",
        "for each in listeners.values()])",
        "for path, each in listeners.items() if not path])",
        (MULTILORA, SEQUENTIAL),
    ),
    Mutant(
        "trap 5: a task that was removed and added again counts as the same",
        "adapters/task_choice.py",
        "self._tasks.get(name) for name in names if name is not None",
        "name for name in names if name in self._tasks",
        (MULTILORA,),
    ),
    Mutant(
        "adding a task makes it current",
        "adapters/task_choice.py",
        "self._tasks[name] = self.fitted(branch)",
        "self._tasks[name] = self.fitted(branch)\n        self._current_task = name",
        (MULTILORA,),
    ),
    Mutant(
        "removing the current task makes the last current",
        "adapters/task_choice.py",
        "self._current_task = next(iter(self._tasks))",
        "self._current_task = list(self._tasks)[-1]",
        (MULTILORA,),
    ),
    Mutant(
        "the last task can be removed",
        "adapters/task_choice.py",
        "if len(self._tasks) == 1:",
        "if not self._tasks:",
        (MULTILORA,),
    ),
    Mutant(
        "a blank name is a task",
        "adapters/task_choice.py",
        "not isinstance(name, str) or not name.strip()",
        "not isinstance(name, str) or not name",
        (MULTILORA,),
    ),
    # ---------------------------------------------------------------- routing
    Mutant(
        "routing gives the groups to the wrong tasks",
        "run.py",
        "return cls.grouped(tuple(number), codes)",
        "return cls.grouped(tuple(number)[::-1], codes)",
        (MIXED,),
    ),
    Mutant(
        "routing does not restore the order of the rows",
        "run.py",
        "y.take(self.inverse, axis=0)",
        "y.take(self.order, axis=0)",
        (MIXED,),
    ),
    Mutant(
        "a batch that is not sorted counts as sorted",
        "run.py",
        "(codes[1:] < codes[:-1]).any()",
        "(codes[1:] < codes[:-1]).all()",
        (MIXED,),
    ),
    Mutant(
        "a batch that is sorted is moved",
        "run.py",
        "(codes[1:] < codes[:-1]).any()",
        "len(codes)",
        (MIXED,),
    ),
    Mutant(
        "a mixed batch without the scalings",
        "adapters/mixed.py",
        "y_rows *= scaling",
        "pass",
        (MIXED,),
    ),
    Mutant(
        "gradients of a mixed batch without the scalings",
        "adapters/mixed.py",
        "self._tasks.together(dy) * scaling",
        "self._tasks.together(dy) * 1",
        (MIXED,),
    ),
    Mutant(
        "the factors of a complex step are taken for real",
        "adapters/mixed.py",
        "np.result_type(x, *{factor.dtype for factors in self._factors for factor in factors})",
        "x.dtype",
        (MIXED,),
    ),
    Mutant(
        "a pass that walks through all tasks",
        "adapters/multilora.py",
        "return 0 if self.is_base_layer_frozen else self.base_layer.compute_auxiliary_loss()",
        "return super().compute_auxiliary_loss()",
        (MIXED,),
    ),
    Mutant(
        "rows without a task go to the current one",
        "adapters/mixed.py",
        "layers = [None if name is None else",
        "layers = [like if name is None else",
        (MIXED,),
    ),
    Mutant(
        "routed gradients from other rows",
        "adapters/mixed.py",
        "g = dy_rows[start:stop]",
        "g = dy_rows[start:stop][::-1]",
        (MIXED,),
    ),
    Mutant(
        "routed gradients under the name of the current task",
        "adapters/multilora.py",
        'Selection(f"tasks.{names[0]}", self._tasks[names[0]])',
        'Selection(f"tasks.{self._current_task}", self._tasks[names[0]])',
        (MIXED,),
    ),
    Mutant(
        "a mixed batch does not reach the base's own tasks",
        "adapters/additive.py",
        "self.base_layer.apply(x, run)",
        "self.base_layer.apply(x, run._replace(tasks=None))",
        (MULTILORA,),
    ),
    Mutant(
        "an unknown task in a mixed batch is accepted",
        "adapters/task_choice.py",
        "if name is not None and name not in self._tasks:",
        "if False:",
        (MULTILORA,),
    ),
    # ---------------------------------------------------------------- trap 6: the flat vector
    Mutant(
        "trap 6: the flat vector is kept",
        "base/parameters.py",
        "return self._flat(self.named_parameters().values())",
        'return self.__dict__.setdefault("flat", self._flat(self.named_parameters().values())).copy()',
        (f"{CONTRACT}::test_trap_6_the_flat_vector_is_never_stale",),
    ),
    Mutant(
        "the flat vector column by column",
        "base/parameters.py",
        "*(array.ravel() for array in arrays)",
        '*(array.ravel("F") for array in arrays)',
        (f"{CONTRACT}::test_the_flat_vector_holds_the_arrays_row_by_row",),
    ),
    Mutant(
        "the flat gradient in another order than the parameters",
        "base/parameters.py",
        "gradients.get(name, np.zeros_like(array)) for name, array in arrays.items())",
        "gradients.get(name, np.zeros_like(array)) for name, array in sorted(arrays.items(), key=lambda item: item[0]))",
        (CONTRACT,),
    ),
    Mutant(
        "a flat vector that goes in shifted",
        "base/parameters.py",
        "            start += array.size\n        self._assign(values)",
        "            start += len(array)\n        self._assign(values)",
        (CONTRACT,),
    ),
    # ---------------------------------------------------------------- trap 7: checks of the public API
    Mutant(
        "trap 7: the feature size is not checked",
        "base/layer.py",
        "last_axis(name, x, self.input_size)",
        "pass",
        (CONTRACT,),
    ),
    Mutant(
        "the shape of the output gradient is not checked",
        "base/layer.py",
        'same_shape("output_gradient", dy, self._pass.output_shape)',
        "pass",
        (CONTRACT,),
    ),
    Mutant(
        "a deployment rank that is not active is accepted",
        "adapters/rank_choice.py",
        "        self.check_rank(rank)\n        self._deployment_rank = int(rank)",
        "        self._deployment_rank = rank",
        (f"{DYLORA}::test_a_deployment_rank_that_is_not_active_is_refused",),
    ),
    Mutant(
        "alpha zero taken for the default",
        "_validation.py",
        "return float(rank) if number < 0 else number",
        "return float(rank) if number <= 0 else number",
        (LORA,),
    ),
    Mutant(
        "float32 grows to float64",
        "base/layer.py",
        "x = real_array(name, input, self.dtype, copy=copy)",
        "x = real_array(name, input, float, copy=copy)",
        (f"{CONTRACT}::test_float32_is_kept",),
    ),
    # ---------------------------------------------------------------- trap 8: activations
    Mutant(
        "trap 8: the derivative at the post-activation",
        "layers/dense.py",
        "is identity else z)",
        "is identity else y)",
        (DENSE,),
    ),
    Mutant(
        "the derivative of tanh without the square",
        "functions/activations.py",
        "return dy * (1 - np.tanh(z) ** 2)",
        "return dy * (1 - np.tanh(z))",
        (ACTIVATION,),
    ),
    Mutant(
        "softmax with the diagonal of its Jacobian alone",
        "functions/activations.py",
        "return y * (dy - (dy * y).sum(axis=-1, keepdims=True))",
        "return y * (1 - y) * dy",
        (ACTIVATION,),
    ),
    # ---------------------------------------------------------------- trap 9: losses
    Mutant(
        "trap 9: a loss whose gradient is half of it",
        "functions/losses.py",
        "return (difference * (difference / n)).sum(), difference * (2 / n)",
        "return (difference * (difference / n)).sum(), difference * (1 / n)",
        (LOSSES,),
    ),
    # ---------------------------------------------------------------- trust: files, extremes
    Mutant(
        "a file gets its name before its bytes are on the disk",
        "_archive.py",
        "            os.fsync(file.fileno())",
        "            pass",
        (ATOMIC,),
    ),
    Mutant(
        "a link is replaced",
        "_archive.py",
        'os.path.realpath(file_path("path", path))',
        'file_path("path", path)',
        (ATOMIC,),
    ),
    Mutant(
        "a private file becomes readable",
        "_archive.py",
        "0o666 if mode is None else mode",
        "0o666",
        (ATOMIC,),
    ),
    Mutant("a planted link is followed", "_archive.py", "os.O_CREAT | os.O_EXCL", "os.O_CREAT", (ATOMIC,)),
    Mutant("entries may share their bytes", "_archive.py", "if total > size:", "if False:", (HOSTILE,)),
    Mutant("compressed entries are inflated", "_archive.py", "if entry.compress_type]", "if False]", (HOSTILE,)),
    Mutant(
        "each layer may be as large as the file",
        "_validation.py",
        "_elements_left.set(left - size)",
        "pass",
        (HOSTILE,),
    ),
    Mutant(
        "a user's class takes the place of ours",
        "io/npz.py",
        'if "." in name_of(kind):',
        "if False:",
        (HOSTILE,),
    ),
    Mutant(
        "the first of two classes of a name is taken",
        "io/npz.py",
        "        if len(found) > 1:\n            raise FormatError",
        "        if False:\n            raise FormatError",
        (HOSTILE,),
    ),
    Mutant(
        "the powers of gelu overflow",
        "functions/activations.py",
        "    c = _within(z, 20)\n    t =",
        "    c = z\n    t =",
        ("tests/test_activations.py",),
    ),
    Mutant(
        "an impossible class that is absent makes the loss NaN",
        "functions/losses.py",
        "np.where(targets == 0, 0, log_probabilities)",
        "log_probabilities",
        (LOSSES,),
    ),
    Mutant(
        "the sum of errors overflows before it is divided",
        "functions/losses.py",
        "return (values / _count(values)).sum()",
        "return values.sum() / _count(values)",
        (LOSSES,),
    ),
    Mutant(
        "Ctrl-C is not held back",
        "training/interrupts.py",
        "signal.signal(signal.SIGINT, self._receive)",
        "pass",
        (INTERRUPTS,),
    ),
    Mutant(
        "Ctrl-C is lost",
        "training/interrupts.py",
        "            arguments, self._waiting = self._waiting, None\n            self._handler(*arguments)",
        "            self._waiting = None",
        (INTERRUPTS,),
    ),
    Mutant(
        "the handler of Ctrl-C is not restored",
        "training/interrupts.py",
        "            signal.signal(signal.SIGINT, self._handler)\n        if kind",
        "            pass\n        if kind",
        (INTERRUPTS,),
    ),
    Mutant(
        "a vacuous check of a gradient passes",
        "testing.py",
        "            error = np.nan",
        "            error = 0.0",
        (TESTING,),
    ),
    Mutant(
        "a gradient that is not finite counts as vacuous",
        "testing.py",
        "if outside.any() or not np.isfinite(error):",
        "if outside.any():",
        (TESTING,),
    ),
    Mutant(
        "a gradient of zero counts as vacuous although the true one is not zero",
        "testing.py",
        "error <= TOLERANCES[numeric.step] and not found.any()",
        "not found.any()",
        (TESTING,),
    ),
    Mutant(
        "a refused call draws a rank",
        "base/listening.py",
        "        ranks = None if rank is None else self._rank(rank, x, listeners)\n",
        "        ranks = _drawn(listeners) if rank is None else self._rank(rank, x, listeners)\n",
        (CALLS,),
    ),
    Mutant("booleans pass as numbers", "_validation.py", 'NUMBER_KINDS = "iuf"', 'NUMBER_KINDS = "biuf"', (VALIDATION,)),
    Mutant("masks are lost", "_validation.py", 'and hasattr(value, "mask")', 'and hasattr(value, "no")', (VALIDATION,)),
    Mutant(
        "a model that is no layer is not refused",
        "models/finding.py",
        '    instance("model", model, Layer, "a layer")\n',
        "",
        (CALLS,),
    ),
    Mutant(
        "a checkpoint of other data is resumed",
        "distributed/worker.py",
        "        digest.update(np.ascontiguousarray(array).data)\n    digest.update(repr(",
        "        pass\n    digest.update(repr(",
        (CHECKPOINTS,),
    ),
    Mutant(
        "a damaged checkpoint moves the generator",
        "distributed/checkpoint.py",
        "copy.deepcopy(state.random.bit_generator)",
        "state.random.bit_generator",
        (CHECKPOINTS,),
    ),
    Mutant(
        "the state of an optimizer in a checkpoint may have any shape",
        "distributed/checkpoint.py",
        '            _check_shape(layer, key.rpartition(":")[0], array, may_broadcast=True)',
        "            pass",
        (CHECKPOINTS,),
    ),
    Mutant(
        "a removed task is current for a moment",
        "adapters/multilora.py",
        "            name, branch = self._current()\n",
        "            name = self._current_task\n            branch = self._tasks[name]\n",
        (THREADS,),
    ),
    Mutant(
        "children are read while tasks change",
        "adapters/task_children.py",
        "for task, branch in list(self._tasks.items())",
        "for task, branch in self._tasks.items()",
        (THREADS,),
    ),
    Mutant(
        "a layer that changes is saved half",
        "base/serializable.py",
        "        if description != header(self) or arrays.keys()",
        "        if False and arrays.keys()",
        (THREADS,),
    ),
    # ---------------------------------------------------------------- scaling and ranks
    Mutant(
        "forward without the scaling",
        "layers/lora.py",
        "h = s * product(x, A)",
        "h = product(x, A)",
        (LORA,),
    ),
    Mutant(
        "backward without the scaling",
        "layers/lora.py",
        "dh = s * product(dy, B.T)",
        "dh = product(dy, B.T)",
        (LORA,),
    ),
    Mutant(
        "the paper's scaling by the full rank",
        "layers/low_rank.py",
        '(rank if self.scaling_rule == "paper"',
        '(self.rank if self.scaling_rule == "paper"',
        (LORA,),
    ),
    Mutant(
        "rslora without the root",
        "layers/low_rank.py",
        "else math.sqrt(rank))",
        "else rank)",
        (LORA,),
    ),
    Mutant(
        "one component too many",
        "layers/low_rank.py",
        "r = self.rank if rank is None else rank\n",
        "r = self.rank if rank is None else min(rank + 1, self.rank)\n",
        (LORA,),
    ),
    Mutant(
        "gradients beyond the rank are not zero",
        "layers/lora.py",
        "dA, dB = np.zeros_like(self.matrix_a), np.zeros_like(self.matrix_b)",
        "dA, dB = np.full_like(self.matrix_a, 1e-9), np.full_like(self.matrix_b, 1e-9)",
        (f"{DYLORA}::test_gradients_beyond_the_rank_are_exactly_zero",),
    ),
    Mutant(
        "frozen mode trains one component instead of the block",
        "adapters/rank_distribution.py",
        "return self.ranks[index - 1] if index else 0",
        "return rank - 1",
        (f"{DYLORA}::test_frozen_mode_trains_every_component_over_the_sparse_ranks",),
    ),
    Mutant(
        "frozen mode trains all components up to the rank",
        "adapters/rank_choice.py",
        'return self._ranks.previous(rank) if self.mode == "frozen" and not isinstance(rank, np.ndarray) else 0',
        "return 0",
        (DYLORA,),
    ),
    Mutant(
        "frozen mode leaves a part of the input gradient out",
        "layers/lora.py",
        "dx = product(dh, A.T) if inputs",
        "dx = product(dh[..., first:], A[:, first:].T) if inputs",
        (DYLORA,),
    ),
    Mutant(
        "the outputs of all ranks with one scaling",
        "adapters/dylora.py",
        "base + self._lora.scaling_at(rank) * branch",
        "base + self._lora.scaling * branch",
        (f"{DYLORA}::test_outputs_at_ranks_are_the_predictions_of_each_rank",),
    ),
    Mutant(
        "the rank distribution is ignored",
        "adapters/rank_choice.py",
        "max_rank, rank_distribution)",
        "max_rank, None)",
        (f"{DYLORA}::test_ranks_are_drawn_as_the_distribution_says",),
    ),
    Mutant(
        "a draw on the edge of two ranks",
        "adapters/rank_distribution.py",
        "self.ranks[bisect_right(",
        'self.ranks[__import__("bisect").bisect_left(',
        (f"{DYLORA}::test_rank_at_a_quantile",),
    ),
    Mutant(
        "the quantiles of rows are not wrapped modulo 1",
        "run.py",
        "max(rows, 1)) % 1)",
        "max(rows, 1)).clip(0, 0.999))",
        (f"{DYLORA}::test_each_rank_has_its_share_of_the_rows_to_within_one",),
    ),
    Mutant(
        "every row with the components of the highest rank",
        "layers/low_rank.py",
        "by_rank[rank - 1].reshape",
        "by_rank[np.full_like(rank, r - 1)].reshape",
        (DYLORA,),
    ),
    Mutant(
        "the gradient ignores the ranks of rows",
        "layers/lora.py",
        "dh = s * product(dy, B.T)",
        "dh = (s if np.ndim(s) == 0 else 1.0) * product(dy, B.T)",
        (DYLORA,),
    ),
    Mutant(
        "a pass with ranks of rows moves every component",
        "adapters/rank_choice.py",
        "last = int(rank.max(initial=1)) if isinstance(rank, np.ndarray) else rank",
        "last = self.active_ranks[-1] if isinstance(rank, np.ndarray) else rank",
        (f"{DYLORA}::test_components_beyond_every_rows_rank_stand_still",),
    ),
    Mutant(
        "each layer draws its own ranks of rows",
        "training/nested_dropout.py",
        "return Draw.of_rows(rng.random(), rows)",
        "return lambda layer: layer.rank_at(Draw.of_rows(rng.random(), rows).quantile)",
        (TRAINING,),
    ),
    Mutant(
        "A begins with a standard deviation of one",
        "layers/lora.py",
        "generator(rng), std=1 / math.sqrt(self.rank))",
        "generator(rng), std=1.0)",
        (LORA,),
    ),
    Mutant(
        "B does not begin at zero",
        "layers/lora.py",
        "self.matrix_b: Array = np.zeros((self.rank, self.output_size), self.dtype)",
        "self.matrix_b: Array = np.full((self.rank, self.output_size), 1e-3, self.dtype)",
        (f"{ADAPTERS}::test_it_begins_as_its_base",),
    ),
    # ---------------------------------------------------------------- adapters
    Mutant(
        "the input gradient of the branch is dropped",
        "adapters/additive.py",
        "else add(base_dx, branch_dx)",
        "else base_dx",
        (STANDARD,),
    ),
    Mutant(
        "the input gradient of the base is dropped",
        "adapters/additive.py",
        "else add(base_dx, branch_dx)",
        "else branch_dx",
        (STANDARD,),
    ),
    Mutant(
        "a frozen base trains",
        "adapters/base.py",
        'frozenset({"base"} if freeze_base_layer else ())',
        "frozenset()",
        (f"{ADAPTERS}::test_a_frozen_base_does_not_move",),
    ),
    Mutant(
        "the weight gradient of a frozen base is computed",
        "adapters/additive.py",
        "branch_dx, branch_gradients = branch.vjp(",
        "self.base_layer.vjp(dy, base_cache)\n        branch_dx, branch_gradients = branch.vjp(",
        (f"{ADAPTERS}::test_the_weight_gradient_of_a_frozen_base_is_never_computed",),
    ),
    Mutant(
        "a frozen layer of a model trains",
        "layers/composite.py",
        "return name not in self.frozen and self._layers[name].supports_training",
        "return self._layers[name].supports_training",
        (SEQUENTIAL,),
    ),
    Mutant(
        "the penalty of a frozen base counts",
        "base/parameters.py",
        "for child in self._trained_children())",
        "for child in self.children().values())",
        (f"{ADAPTERS}::test_the_penalty_of_a_base_counts_only_where_it_trains",),
    ),
    Mutant(
        "the penalty does not reach the gradient",
        "layers/dense.py",
        "if self.regularization != NO_REGULARIZATION:\n                dW",
        "if False:\n                dW",
        (DENSE,),
    ),
    Mutant(
        "gradients are means over rows",
        "layers/dense.py",
        '"bias": sum_rows(dz)}',
        '"bias": sum_rows(dz) / max(dz.size // self.output_size, 1)}',
        (DENSE,),
    ),
    Mutant(
        "rows are summed over the first axis alone",
        "kernels/products.py",
        "return np.add.reduce(_rows(dy))",
        "return np.add.reduce(dy)",
        (CONTRACT,),
    ),
    # ---------------------------------------------------------------- products and packs
    Mutant(
        "the last rows that do not fill a tile are left out",
        "kernels/tiles.py",
        ("    if whole < len(x):\n        last = last_rows(whole, len(x))\n        np.matmul(x[last], W, out=y[last])\n"),
        "",
        (KERNELS,),
    ),
    Mutant(
        "the last columns that do not fill a panel are left out",
        "kernels/panels.py",
        "if self.columns < n:",
        "if False:",
        (KERNELS,),
    ),
    Mutant(
        "the partial products of a tall matrix are not added",
        "kernels/panels.py",
        "            y += addend\n",
        "            y[...] = part\n",
        (KERNELS,),
    ),
    Mutant(
        "panels for the wrong side",
        "kernels/panels.py",
        "return entry.backward if is_transpose else None",
        "return entry.forward if is_transpose else None",
        (KERNELS,),
    ),
    Mutant(
        "the last columns that do not fill a tile are left out",
        "kernels/tiles.py",
        "if whole < n:",
        "if False:",
        (KERNELS,),
    ),
    Mutant(
        "tiles for any type",
        "kernels/tiles.py",
        'return type(x) is np.ndarray is type(W) and x.dtype == W.dtype and x.dtype.char in "fd"',
        "return True",
        (KERNELS,),
    ),
    Mutant(
        "a packed weight can be written to",
        "base/packable.py",
        "                    layer._make_read_only(matrix)\n",
        "",
        (PACKING,),
    ),
    Mutant(
        "panels outlive their array",
        "kernels/panels.py",
        "weakref.finalize(owner, _packed.pop, address, None)",
        "pass",
        (KERNELS,),
    ),
    Mutant(
        "unpacking makes an array writeable that another layer has packed",
        "base/packable.py",
        'setattr(self, name, array.copy(order="K"))',
        "array.flags.writeable = True",
        (PACKING,),
    ),
    Mutant(
        "a weight that trains is packed",
        "base/packable.py",
        "found += child.walk().values() if name in self.frozen else child._at_rest()",
        "found += child.walk().values()",
        (PACKING,),
    ),
    Mutant(
        "a view of other columns is taken for the packed matrix",
        "kernels/panels.py",
        "if (W.shape, W.strides) == (entry.shape, entry.strides):",
        "if W.shape == entry.shape:",
        (KERNELS,),
    ),
    Mutant(
        "unfreezing keeps the panels",
        "layers/sequential.py",
        "            self._layers[name].unpack()\n",
        "            pass\n",
        (PACKING,),
    ),
    Mutant(
        "an input gradient that is not needed is computed",
        "base/layer.py",
        "inputs=need_input_grad)",
        "inputs=True)",
        (f"{CONTRACT}::test_an_input_gradient_that_nobody_needs_is_not_given",),
    ),
    Mutant(
        "the memory of a packed weight can be written to",
        "kernels/panels.py",
        "    owner.flags.writeable = False\n",
        "",
        (PACKING,),
    ),
    # ---------------------------------------------------------------- memory
    Mutant(
        "a second backward adds",
        "base/layer.py",
        "self._pending = gradients, self._pass\n",
        (
            "gradients = {name: g + self.gradients.get(name, 0) for name, g in gradients.items()}\n"
            "        self._pending = gradients, self._pass\n"
        ),
        (f"{CONTRACT}::test_a_second_backward_replaces_the_gradients",),
    ),
    Mutant(
        "gradients are used twice",
        "base/layer.py",
        "p -= rate * gradients[name]\n            self._forget()",
        "p -= rate * gradients[name]",
        (f"{CONTRACT}::test_a_step_uses_the_gradients_up",),
    ),
    Mutant(
        "a pass outlives the step",
        "base/layer.py",
        "p += checked[name]\n        self._forget()",
        "p += checked[name]\n        self.clear_gradients()",
        (BASE,),
    ),
    Mutant(
        "a layer forgets its pre-activation",
        "layers/dense.py",
        "None if self.activation is identity else z",
        "None",
        (DENSE,),
    ),
    Mutant(
        "a step uphill",
        "base/layer.py",
        "p -= rate * gradients[name]",
        "p += rate * gradients[name]",
        (f"{CONTRACT}::test_a_step_moves_exactly_what_has_a_gradient",),
    ),
    Mutant(
        "a refused update is half applied",
        "base/parameters.py",
        "            parameters[name] = parameter\n        return",
        "            parameters[name] = parameter\n            parameter += value\n        return",
        (PACKING,),
    ),
    Mutant(
        "the cache holds the caller's buffer",
        "base/layer.py",
        "x = self.check_input(input, copy=True)",
        "x = self.check_input(input)",
        (f"{CONTRACT}::test_the_caller_may_overwrite_its_buffers",),
    ),
    Mutant(
        "the cache of a mixed batch holds the caller's buffer",
        "_validation.py",
        "return array.copy() if copy else array",
        "return array",
        (MULTILORA,),
    ),
    Mutant(
        "results are views of arguments",
        "base/memory.py",
        "return result.copy() if np.may_share_memory(result, argument) else result",
        "return result",
        (f"{CONTRACT}::test_results_never_share_memory_with_anything",),
    ),
    Mutant(
        "the output is the cache's own array",
        "functions/activations.py",
        "np.may_share_memory(y, z) else y.copy()",
        "np.may_share_memory(y, z) else y",
        (DENSE,),
    ),
    Mutant(
        "a reset does not reach the layers inside",
        "base/layer.py",
        "for layer in self.walk().values():\n            layer._forget()",
        "self._forget()",
        (BASE,),
    ),
    Mutant(
        "copies keep the pending pass",
        "base/layer.py",
        'return self.__dict__ | {"_pass": None, "_pending": None}',
        "return dict(self.__dict__)",
        (f"{CONTRACT}::test_a_copy_starts_without_a_pending_pass",),
    ),
    Mutant(
        "clones share their name",
        "base/serializable.py",
        "layer.layer_name = new_name(layer)",
        "pass",
        (f"{CONTRACT}::test_a_clone_has_a_name_of_its_own",),
    ),
    Mutant(
        "files omit the settings",
        "base/serializable.py",
        "_set(layers, given)",
        "pass",
        (f"{DYLORA}::test_the_deployment_rank_survives_copies_and_files",),
    ),
    Mutant(
        "results that are views are not copied",
        "base/memory.py",
        "if result is not argument and result.base is None and argument.base is None:",
        "if result is not argument:",
        (BASE,),
    ),
    Mutant(
        "the input gradient of the lowest layer that trains is computed",
        "layers/composite.py",
        "inputs=inputs or bool(remaining))",
        "inputs=True)",
        (f"{SEQUENTIAL}::test_layers_below_the_last_that_trains_are_not_differentiated",),
    ),
    Mutant(
        "a model in which nothing trains is differentiated",
        "layers/composite.py",
        "if not (trains or inputs or remaining):",
        "if False:",
        (f"{SEQUENTIAL}::test_layers_below_the_last_that_trains_are_not_differentiated",),
    ),
    # ---------------------------------------------------------------- DoRA and VeRA
    Mutant(
        "the gradient of DoRA's norm with the wrong sign",
        "adapters/dora.py",
        "dV = V * (-dc * c",
        "dV = V * (dc * c",
        (DORA,),
    ),
    Mutant(
        "DoRA always differentiates the norm",
        "adapters/dora.py",
        "if self.norm_gradient else",
        "if True else",
        (DORA,),
    ),
    Mutant(
        "the gradient of DoRA's magnitude without the norm",
        "adapters/dora.py",
        'gradients["magnitude"] = dc / n',
        'gradients["magnitude"] = dc',
        (DORA,),
    ),
    Mutant("DoRA scales the bias", "adapters/dora.py", "u = z - b + branch", "u = z + branch", (DORA,)),
    Mutant(
        "DoRA's bias gradient is scaled",
        "adapters/dora.py",
        'base_gradients["bias"] = sum_rows(dy)',
        "pass",
        (DORA,),
    ),
    Mutant(
        "DoRA divides by a zero norm",
        "adapters/dora.py",
        "return np.where(norms == 0, 1, norms)",
        "return norms",
        (DORA,),
    ),
    Mutant(
        "DoRA's weight gradient in the other layout",
        "adapters/dora.py",
        "+ self._base.in_layout(dV)",
        '+ dV.reshape(base_gradients["weight"].shape)',
        (DORA,),
    ),
    Mutant("VeRA's backward without b", "adapters/vera.py", "product(dy * b, B.T)", "product(dy, B.T)", (VERA,)),
    Mutant(
        "VeRA's forward without b",
        "adapters/vera.py",
        "return t * b, VeRACache(",
        "return t, VeRACache(",
        (VERA,),
    ),
    Mutant(
        "VeRA's input gradient without d", "adapters/vera.py", "dx = product(dq * d, A.T)", "dx = product(dq, A.T)", (VERA,)
    ),
    Mutant("VeRA's merge without b", "adapters/vera.py", "(A * d) @ (B * b)", "(A * d) @ B", (VERA,)),
    # ---------------------------------------------------------------- optimizers
    Mutant(
        "Adam moves components without a gradient",
        "training/optimizers.py",
        "return (np.empty_like(parameter), ...) if part is None else (np.zeros_like(parameter), part)",
        "return np.zeros_like(parameter), ...",
        STEPS,
    ),
    Mutant(
        "Adam counts the steps of all components together",
        "training/optimizers.py",
        "        steps += 1\n",
        "        state.steps += 1\n",
        STEPS,
    ),
    Mutant(
        "weight decay moves components without a gradient",
        "training/optimizers.py",
        "parameter[here]\n        return update",
        "parameter[here]\n        return update - 1e-3 * self.weight_decay * parameter * self.learning_rate",
        STEPS,
    ),
    Mutant(
        "momentum of components without a gradient fades",
        "training/optimizers.py",
        "v *= self.momentum",
        "velocity *= self.momentum",
        STEPS,
    ),
    Mutant(
        "the trained part does not reach the optimizer",
        "training/optimizers.py",
        "parts.get(name))",
        "None)",
        STEPS,
    ),
    Mutant(
        "the trained parts of layers inside a model are lost",
        "base/listening.py",
        "parts |= prefixed(path, own) if path else own",
        "parts |= {} if path else own",
        (f"{DYLORA}::test_components_stand_still_inside_a_model_too",),
    ),
    Mutant(
        "Adam's second moment keeps the bias of its start",
        "training/optimizers.py",
        "root = (1 - self.beta2**t) ** 0.5",
        "root = 1.0",
        (OPTIMIZERS,),
    ),
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
        "the command line overrides the environment",
        "cli/_threads.py",
        'any(name in os.environ for name in (*VARIABLES, "OMP_NUM_THREADS"))',
        "False",
        ("tests/cli/test_threads.py",),
    ),
    Mutant(
        "the demo on texts uses one thread",
        "cli/_threads.py",
        ' and words[1:2] != ["text"]',
        "",
        ("tests/cli/test_threads.py",),
    ),
    Mutant(
        "the rows of a thread end within a tile",
        "kernels/panels.py",
        "_shares(rows, by_rows, self.tile)",
        "_shares(rows, by_rows)",
        (KERNELS,),
    ),
    Mutant(
        "the last panels have no thread",
        "kernels/panels.py",
        "[*bounds, length]",
        "[*bounds, length - (count > 1)]",
        (KERNELS,),
    ),
    Mutant(
        "threads share the first panels",
        "kernels/panels.py",
        "block_panels[panels], addend",
        "block_panels[: panels.stop - panels.start], addend",
        (KERNELS,),
    ),
    Mutant(
        "small products are shared too",
        "kernels/panels.py",
        "threads = min(work, blas.threads()) if work > 1 else 1",
        "threads = blas.threads()",
        (KERNELS,),
    ),
    Mutant(
        "a product does not wait for its workers",
        "kernels/workers.py",
        "        future.result()",
        "        future.running()",
        (KERNELS,),
    ),
    Mutant(
        "a forked process waits for its parent's workers",
        "kernels/workers.py",
        "    global _pool\n    _pool = None",
        "    _pool = None",
        (KERNELS,),
    ),
    Mutant(
        "the array of any initializer is kept",
        "layers/dense.py",
        "copy=None if is_new else True",
        "copy=None",
        (f"{DENSE}::test_the_array_of_an_initializer_is_copied",),
    ),
    Mutant(
        "the array of every initializer is copied",
        "layers/dense.py",
        "copy=None if is_new else True",
        "copy=True",
        (f"{DENSE}::test_a_new_layer_needs_hardly_more_memory_than_its_weight",),
    ),
    Mutant(
        "the last piece of the samples is not drawn",
        "functions/initializers.py",
        "for start in range(0, flat.size, PIECE):",
        "for start in range(0, flat.size // PIECE * PIECE or 1, PIECE):",
        ("tests/test_initializers.py",),
    ),
    Mutant(
        "Adam's epsilon without its bias correction",
        "training/optimizers.py",
        "self.epsilon * root",
        "self.epsilon",
        (OPTIMIZERS,),
    ),
    Mutant(
        "one step count for components that were trained differently often",
        "training/optimizers.py",
        "steps if steps.size > 1 else steps.item()",
        "int(steps.max())",
        (OPTIMIZERS,),
    ),
    Mutant(
        "a finite sum that overflows counts as infinite",
        "training/step.py",
        "math.isfinite(np.add.reduce(array, axis=None)) or bool(np.isfinite(array).all())",
        "math.isfinite(np.add.reduce(array, axis=None))",
        ("tests/test_descent.py",),
    ),
    Mutant(
        "frozen mode trains every component at the top rank",
        "adapters/rank_choice.py",
        "if first == 0 and last == self.max_rank:",
        "if last == self.max_rank:",
        (DYLORA,),
    ),
    Mutant(
        "a pass at an active rank trains every component",
        "adapters/rank_choice.py",
        "if first == 0 and last == self.max_rank:",
        "if first == 0 and last == self.active_ranks[-1]:",
        (DYLORA,),
    ),
    Mutant(
        "Nesterov momentum without the gradient",
        "training/optimizers.py",
        "            dp += g\n",
        "",
        (OPTIMIZERS,),
    ),
    Mutant(
        "the trained parts of a base that is an adapter are lost",
        "base/listening.py",
        'found[f"{name}.{path}" if path else name] = listener',
        'found[f"{name}.{path}"] = listener',
        (f"{DYLORA}::test_components_stand_still_inside_a_model_too",),
    ),
    # ---------------------------------------------------------------- the run of a pass
    Mutant(
        "a model loses the tasks",
        "layers/composite.py",
        "            y, cache = self._layers[name].apply(",
        "            run = run._replace(tasks=None)\n            y, cache = self._layers[name].apply(",
        (MULTILORA,),
    ),
    Mutant(
        "a model does not pass a given rank on",
        "layers/composite.py",
        "            y, cache = self._layers[name].apply(",
        (
            "            run = run if run.training else run._replace(rank=None)\n"
            "            y, cache = self._layers[name].apply("
        ),
        (RUN,),
    ),
    Mutant(
        "an adapter does not pass a given rank on to its base",
        "adapters/additive.py",
        "self.base_layer.apply(x, run)",
        "self.base_layer.apply(x, run if run.training else run._replace(rank=None))",
        (RUN,),
    ),
    Mutant(
        "DoRA does not pass its mode on to its base",
        "adapters/dora.py",
        "z, base_cache = self._base.apply(x, run)",
        "z, base_cache = self._base.apply(x, run._replace(training=False))",
        (f"{ADAPTERS}::test_the_mode_of_a_pass_reaches_base_and_branch",),
    ),
    Mutant(
        "inference keeps every cache",
        "layers/composite.py",
        "if run.keep and name not in forgotten:",
        "if name not in forgotten:",
        (f"{SEQUENTIAL}::test_inference_takes_the_memory_of_one_layer",),
    ),
    Mutant(
        "predict asks for caches",
        "base/layer.py",
        "rank=rank, keep=False)",
        "rank=rank)",
        (f"{SEQUENTIAL}::test_inference_takes_the_memory_of_one_layer",),
    ),
    Mutant(
        "inference with tasks keeps every cache",
        "base/listening.py",
        "self._tasks_of(tasks, x, listeners), ranks, keep)",
        "self._tasks_of(tasks, x, listeners), ranks)",
        (f"{SEQUENTIAL}::test_inference_of_a_mixed_batch_takes_the_memory_of_one_layer",),
    ),
    Mutant(
        "the adapters inside a base do not read the run",
        "adapters/base.py",
        'return {"base": self.base_layer}',
        "return {}",
        (MULTILORA,),
    ),
    Mutant(
        "a run is not checked",
        "base/listening.py",
        "            listener.check_run(run)",
        "            pass",
        (RUN,),
    ),
    Mutant(
        "a rank is ignored if no layer has ranks",
        "base/listening.py",
        'if not _listen_to("rank", listeners):',
        "if False:",
        (RUN,),
    ),
    Mutant(
        "tasks are ignored if no layer has tasks",
        "base/listening.py",
        'if not _listen_to("tasks", listeners) and any(',
        "if False and any(",
        (MULTILORA,),
    ),
    Mutant(
        "tasks for too few rows are accepted",
        "run.py",
        "if len(codes) != rows:",
        "if len(codes) > rows:",
        (MULTILORA,),
    ),
    Mutant(
        "a string is accepted as a sequence of tasks",
        "run.py",
        "if isinstance(tasks, str) or not isinstance(tasks, Iterable):",
        "if not isinstance(tasks, Iterable):",
        (MULTILORA,),
    ),
    Mutant(
        "the number of rows of each task is that of another one",
        "run.py",
        "np.bincount(codes, minlength=len(names))",
        "np.sort(np.bincount(codes, minlength=len(names)))",
        (MIXED,),
    ),
    Mutant(
        "the rows of a mixed batch are sorted backwards",
        "run.py",
        'codes.argsort(kind="stable")',
        'codes.argsort(kind="stable")[::-1]',
        (MIXED,),
    ),
    Mutant(
        "the inverse of the order is the order",
        "run.py",
        "inverse[order] = np.arange(len(codes))",
        "inverse[...] = order",
        (MIXED,),
    ),
    Mutant(
        "ranks for the wrong number of rows are accepted",
        "run.py",
        "ranks.shape != (rows,)",
        "ranks.ndim != 1",
        (RUN,),
    ),
    Mutant(
        "ranks of rows that are not integers are accepted",
        "run.py",
        'ranks.dtype.kind not in "iu" or ',
        "",
        (RUN,),
    ),
    Mutant(
        "a rank that is not an integer is accepted",
        "run.py",
        'return integer("rank", rank)',
        "return int(rank)",
        (RUN,),
    ),
    Mutant(
        "the features of a single row count as rows",
        "base/listening.py",
        "len(x) if x.ndim > 1 else None",
        "len(x)",
        (RUN,),
    ),
    # ---------------------------------------------------------------- one draw for a pass
    Mutant(
        "each layer draws its own rank",
        "run.py",
        "layer.rank_at(self.quantile)",
        "layer.rank_at(layer._rng.random())",
        (RUN,),
    ),
    Mutant(
        "a second draw for one pass",
        "base/listening.py",
        "drawn = _drawn(listeners) if",
        "drawn = _drawn(listeners) and _drawn(listeners) if",
        (RUN,),
    ),
    Mutant(
        "every layer draws, and the last draw counts",
        "base/listening.py",
        "        draw: Draw | None = listener.draw()\n",
        "        draw: Draw | None = [each.draw() for each in listeners.values()][-1]\n",
        (RUN,),
    ),
    Mutant(
        "evaluation with tasks draws ranks",
        "base/listening.py",
        "_drawn(listeners)) if training and rank is None else run",
        "_drawn(listeners)) if rank is None else run",
        (MIXED,),
    ),
    Mutant(
        "training draws although a rank is given",
        "base/listening.py",
        "(rank=_drawn(listeners)) if training and rank is None else",
        "(rank=_drawn(listeners)) if training else",
        (f"{DYLORA}::test_a_given_rank_draws_nothing",),
    ),
    Mutant(
        "training without a draw takes the deployment rank",
        "adapters/rank_choice.py",
        "if rank is None and run.training:",
        "if False:",
        (RUN,),
    ),
    Mutant(
        "frozen mode trains at ranks of rows",
        "adapters/rank_choice.py",
        'if isinstance(rank, np.ndarray) and self.mode == "frozen" and run.keep:',
        "if False:",
        (RUN,),
    ),
    Mutant(
        "frozen mode has no inference at ranks of rows",
        "adapters/rank_choice.py",
        'self.mode == "frozen" and run.keep:',
        'self.mode == "frozen":',
        (RUN,),
    ),
    Mutant(
        "independent ranks are not independent",
        "training/nested_dropout.py",
        "return {adapter: adapter.rank_at(rng.random()) for adapter in adapters}.__getitem__",
        "return Draw(rng.random())",
        (TRAINING,),
    ),
    Mutant(
        "every pass of nested dropout by rows has the same quantile",
        "training/nested_dropout.py",
        "_rank_of_rows(rng.random(), x)",
        "_rank_of_rows(0.4, x)",
        (f"{DYLORA}::test_training_with_a_rank_for_each_row_draws_a_quantile_for_each_step",),
    ),
    # ---------------------------------------------------------------- ranks of rows
    Mutant(
        "a row has one component more than its rank",
        "layers/low_rank.py",
        "np.tri(r, dtype=self.dtype)",
        "np.tri(r, k=1, dtype=self.dtype)",
        (DYLORA,),
    ),
    Mutant(
        "a row has one component fewer than its rank",
        "layers/low_rank.py",
        "np.tri(r, dtype=self.dtype)",
        "np.tri(r, k=-1, dtype=self.dtype)",
        (DYLORA,),
    ),
    Mutant(
        "rows have the scaling of the highest rank",
        "layers/low_rank.py",
        "[self.scaling_at(each) for each",
        "[self.scaling_at(r) for each",
        (DYLORA,),
    ),
    Mutant(
        "the scalings belong to components instead of rows",
        "layers/low_rank.py",
        "* scalings[:, np.newaxis]",
        "* scalings",
        (DYLORA,),
    ),
    Mutant(
        "the scalings of rows are float64",
        "layers/low_rank.py",
        "for each in range(1, r + 1)], self.dtype)",
        "for each in range(1, r + 1)])",
        (f"{DYLORA}::test_ranks_of_rows_keep_float32",),
    ),
    Mutant(
        "the quantiles of rows reach both ends",
        "run.py",
        "np.arange(rows) / max(rows, 1)",
        "np.arange(rows) / max(rows - 1, 1)",
        (DYLORA,),
    ),
    Mutant(
        "a row on the edge of two ranks",
        "adapters/rank_distribution.py",
        'side="right"',
        'side="left"',
        (DYLORA,),
    ),
    # ---------------------------------------------------------------- models: adapting, merging, selecting
    Mutant(
        "a model with other layers loses its frozen names",
        "layers/sequential.py",
        "self._layers | dict(changed), frozen=sorted(self.frozen))",
        "self._layers | dict(changed))",
        (SEQUENTIAL,),
    ),
    Mutant(
        "a container's own arrays still train",
        "models/adapting.py",
        "frozenset(at_rest.union(twin.parameter_names))",
        "frozenset(at_rest)",
        (ADAPTING,),
    ),
    Mutant(
        "layers beside the adapters still train",
        "models/adapting.py",
        "frozenset(at_rest.union(twin.parameter_names))",
        "frozenset(twin.parameter_names)",
        (ADAPTING,),
    ),
    Mutant(
        "the layers to train are frozen",
        "models/adapting.py",
        "return apply_adapters(model, factories, train=kept)",
        "return apply_adapters(model, factories)",
        (ADAPTING,),
    ),
    Mutant(
        "a layer to train inside another one is frozen",
        "models/adapting.py",
        "return has_adapters(layer) or is_inside(path, train) or any(is_inside(kept, [path]) for kept in train)",
        "return has_adapters(layer) or is_inside(path, train)",
        (ADAPTING,),
    ),
    Mutant(
        "layers beside a layer to train stay trainable",
        "models/adapting.py",
        "if not changed and (is_inside(path, train) or not any(is_inside(kept, [path]) for kept in train)):",
        "if not changed:",
        (ADAPTING,),
    ),
    Mutant(
        "a model without adapters stays frozen",
        "models/adapting.py",
        '        train=("",),\n',
        "",
        (ADAPTING,),
    ),
    Mutant(
        "one adapter is merged although another cannot be",
        "models/adapting.py",
        "swaps.append((layer, layer.with_children(merged)))",
        "become(layer, layer.with_children(merged))",
        (RUN,),
    ),
    Mutant(
        "a container loses its name",
        "base/parameters.py",
        ' | {"layer_name": layer.layer_name})',
        ")",
        (ADAPTING,),
    ),
    Mutant(
        "factories are called in another order than that of the layers",
        "models/adapting.py",
        "_adapted(path, layer, factories[path]) for path, layer in layers.items() if path in factories",
        "_adapted(path, layers[path], factories[path]) for path in sorted(factories, reverse=True)",
        (MODEL,),
    ),
    Mutant(
        "the seeds of the layers depend on the order of their names",
        "models/adapting.py",
        "for path in dense if path in chosen}",
        "for path in sorted(chosen)}",
        (ADAPTING,),
    ),
    Mutant(
        "an activation takes the name of another layer",
        "models/adapting.py",
        "if activation in model.children():",
        "if False:",
        (MODEL,),
    ),
    Mutant(
        "an adapter keeps its base",
        "adapters/base.py",
        'twin.base_layer = changed.get("base", self.base_layer)',
        "twin.base_layer = self.base_layer",
        (ADAPTING,),
    ),
    Mutant(
        "an adapter drops a new branch",
        "adapters/base.py",
        'for name, layer in changed.items() if name != "base"}:',
        "for name, layer in changed.items() if False}:",
        (ADAPTING,),
    ),
    Mutant(
        "a rank is selected in part of a model",
        "models/finding.py",
        "    check_rank(adapters, rank)\n",
        "",
        (ADAPTING,),
    ),
    Mutant(
        "a task is selected in part of a model",
        "models/finding.py",
        "            adapter.get_task_adapter(task)\n",
        "            adapter.current_task = task\n",
        (MODEL,),
    ),
    Mutant(
        "a table at a rank counts every component",
        "models/parameter_table.py",
        "= (adapter.input_size, rank)",
        "= (adapter.input_size, adapter.max_rank)",
        (ADAPTING,),
    ),
    Mutant(
        "a table at a rank that is not active is accepted",
        "models/parameter_table.py",
        "        check_rank(adapters, rank)\n",
        "",
        (ADAPTING,),
    ),
    # ---------------------------------------------------------------- adapters around given branches, and their settings
    Mutant(
        "a standard adapter around a branch freezes its base",
        "adapters/standard.py",
        "AdditiveAdapter.__init__(adapter, base_layer, freeze_base_layer)",
        "AdditiveAdapter.__init__(adapter, base_layer)",
        (ADAPTING,),
    ),
    Mutant(
        "DyLoRA around a branch loses its mode",
        "adapters/dylora.py",
        "adapter._choose(branch.rank, **choices)",
        'adapter._choose(branch.rank, **choices | {"mode": "full"})',
        (ADAPTING,),
    ),
    Mutant(
        "DyLoRA around a branch loses its distribution",
        "adapters/dylora.py",
        "adapter._choose(branch.rank, **choices)",
        'adapter._choose(branch.rank, **choices | {"rank_distribution": None})',
        (ADAPTING,),
    ),
    Mutant(
        "DoRA around a branch always differentiates the norm",
        "adapters/dora.py",
        "        adapter._measure(norm_gradient)\n",
        "        adapter._measure(True)\n",
        (ADAPTING,),
    ),
    Mutant(
        "MultiLoRA around its tasks freezes its base",
        "adapters/multilora.py",
        "AdditiveAdapter.__init__(adapter, base_layer, freeze_base_layer)",
        "AdditiveAdapter.__init__(adapter, base_layer)",
        (CONTRACT,),
    ),
    Mutant(
        "a new branch keeps its own mode",
        "adapters/base.py",
        "        branch.is_training = self.is_training\n",
        "",
        (BRANCHES,),
    ),
    Mutant(
        "a branch of another dtype is accepted",
        "base/parameters.py",
        "if (layer.input_size, layer.output_size, layer.dtype) != (like.input_size, like.output_size, like.dtype):",
        "if (layer.input_size, layer.output_size) != (like.input_size, like.output_size):",
        (BRANCHES,),
    ),
    Mutant(
        "a new branch resets the deployment rank",
        "adapters/dylora.py",
        "min(self._deployment_rank, self.active_ranks[-1])",
        "self.active_ranks[-1]",
        (BRANCHES,),
    ),
    Mutant(
        "a copy with other branches shares the generator of ranks",
        "adapters/dylora.py",
        "self._lora, self._rng = branch, copy.deepcopy(self._rng)",
        "self._lora = branch",
        (BRANCHES,),
    ),
    Mutant(
        "a copy with other branches shares the tasks",
        "adapters/multilora.py",
        "self._tasks = self._tasks | {",
        "self._tasks |= {",
        (BRANCHES,),
    ),
    Mutant(
        "settings lose the deployment rank",
        "factors/settings.py",
        "adapter.current_deployment_rank = self.current_deployment_rank",
        "pass",
        (ADAPTING,),
    ),
    Mutant(
        "settings lose the distribution",
        "factors/settings.py",
        "            rank_distribution=self.rank_distribution,\n        )",
        "        )",
        (ADAPTING,),
    ),
    Mutant(
        "settings lose the mode",
        "factors/settings.py",
        "            mode=self.mode,\n",
        "",
        (ADAPTING,),
    ),
    Mutant(
        "settings accept any active ranks",
        "factors/settings.py",
        "RankDistribution.of(self.active_ranks, sys.maxsize, self.rank_distribution)",
        "pass",
        (ADAPTING,),
    ),
    Mutant(
        "settings accept any mode",
        "factors/settings.py",
        'one_of("mode", self.mode, ("full", "frozen"))',
        "pass",
        (ADAPTING,),
    ),
    Mutant(
        "settings accept any scaling",
        "factors/settings.py",
        'one_of("scaling", self.scaling, SCALINGS)',
        "pass",
        (ADAPTING,),
    ),
    Mutant(
        "settings accept a negative alpha",
        "factors/settings.py",
        'if finite_float("alpha", self.alpha) < 0:',
        "if False:",
        (ADAPTING,),
    ),
    Mutant(
        "settings accept any deployment rank",
        "factors/settings.py",
        'self.check_rank(self.current_deployment_rank, "current_deployment_rank")',
        "pass",
        (ADAPTING,),
    ),
    Mutant(
        "settings accept a branch of a lower rank",
        "factors/settings.py",
        "RankDistribution.of(self.active_ranks, branch.rank, self.rank_distribution)",
        "pass",
        (ADAPTING,),
    ),
    Mutant(
        "a slice at a rank has the alpha of the whole",
        "layers/lora.py",
        "self.scaling_at(r) * r)",
        "self.alpha)",
        (WEIGHTS,),
    ),
    Mutant(
        "a slice at a rank that is not active is accepted",
        "adapters/dylora.py",
        "    adapter.check_rank(rank)\n    return",
        "    return",
        (WEIGHTS,),
    ),
    Mutant(
        "weights at the highest rank instead of the deployment rank",
        "factors/weights.py",
        "settings.current_deployment_rank if rank is None else rank",
        "settings.active_ranks[-1] if rank is None else rank",
        (WEIGHTS,),
    ),
    Mutant(
        "any attribute can be set",
        "base/fixed_attributes.py",
        'if name[0] != "_" and name not in _declared(',
        "if False and name not in _declared(",
        (ADAPTING,),
    ),
    Mutant(
        "a base of other sizes is accepted",
        "adapters/base.py",
        'require_same_sizes("base", twin.base_layer, self)',
        "pass",
        (ADAPTING,),
    ),
    Mutant(
        "a copy with other branches shares the generator of tasks",
        "adapters/multilora.py",
        "        self._rng = copy.deepcopy(self._rng)\n",
        "",
        (BRANCHES,),
    ),
    # ---------------------------------------------------------------- sums and panels
    Mutant(
        "a sum is written into a vector",
        "kernels/products.py",
        "and a.ndim > 1 and a.dtype",
        "and a.dtype",
        (KERNELS,),
    ),
    Mutant(
        "a sum is written into its first operand",
        "kernels/products.py",
        "            b += a\n            return b\n",
        "            a += b\n            return a\n",
        (KERNELS,),
    ),
    Mutant(
        "a sum is written into an operand of another type",
        "kernels/products.py",
        "and a.ndim > 1 and a.dtype == b.dtype:",
        "and a.ndim > 1:",
        (KERNELS,),
    ),
    Mutant(
        "panels keep their matrix alive",
        "kernels/panels.py",
        "panels[:, block].copy()",
        "panels[:, block]",
        (KERNELS,),
    ),
    Mutant(
        "the columns that do not fill a panel keep their matrix alive",
        "kernels/panels.py",
        "matrix[:, self.columns :].copy()",
        "matrix[:, self.columns :]",
        (KERNELS,),
    ),
    Mutant(
        "the last rows of panels are left out",
        "kernels/panels.py",
        "    if whole < len(x):\n",
        "    if False:\n",
        (KERNELS,),
    ),
    Mutant(
        "a matrix is not packed for backward",
        "kernels/panels.py",
        "Panels(matrix.T) if backward else None",
        "None",
        (KERNELS,),
    ),
    Mutant(
        "a small sum of outer products is transposed",
        "kernels/products.py",
        "return x.T.dot(dy)",
        "return dy.T.dot(x).reshape(x.shape[1], -1)",
        (KERNELS,),
    ),
    # ---------------------------------------------------------------- sequences and encoders
    Mutant(
        "attention without 1/√d",
        "layers/attention.py",
        "q = q * (q.shape[-1] // H) ** -0.5",
        "q = q * 1.0",
        (ATTENTION,),
    ),
    Mutant(
        "the gradient of queries without 1/√d",
        "layers/attention.py",
        "_rows(dQ, H, spans) * d**-0.5",
        "_rows(dQ, H, spans)",
        (ATTENTION,),
    ),
    Mutant(
        "the softmax of attention with the diagonal of its Jacobian alone",
        "layers/attention.py",
        '    dP -= np.einsum("...s,...s->...", dP, P)[..., np.newaxis]\n',
        "",
        (ATTENTION,),
    ),
    Mutant(
        "a causal query sees the next key",
        "layers/attention.py",
        "where=key > query[..., np.newaxis]",
        "where=key > query[..., np.newaxis] + 1",
        (ATTENTION,),
    ),
    Mutant(
        "attention sees one row of padding",
        "layers/attention.py",
        "where=key >= spans.lengths",
        "where=key > spans.lengths",
        (ATTENTION,),
    ),
    Mutant(
        "the gradient of rotary positions turns forward",
        "layers/rotary.py",
        "_rotated(dy, cos, -sin)",
        "_rotated(dy, cos, sin)",
        (ATTENTION,),
    ),
    Mutant(
        "positions count over the whole batch",
        "sequences.py",
        "positions = slots % T",
        "positions = np.arange(len(slots))",
        (SEQUENCES,),
    ),
    Mutant(
        "means of sequences divide by the longest length",
        "sequences.py",
        "np.add.reduceat(x, spans.starts) / spans.lengths[:, np.newaxis].astype(x.real.dtype)",
        "np.add.reduceat(x, spans.starts) / spans.shape[1]",
        (SEQUENCES,),
    ),
    Mutant(
        "rows have the tasks of sequences in another order",
        "run.py",
        "codes = codes if self.inverse is None else codes[self.inverse]",
        "pass",
        (ENCODERS,),
    ),
    Mutant(
        "rows have the ranks of other sequences",
        "run.py",
        "rank.repeat(self.lengths)",
        "rank.repeat(self.lengths[::-1])",
        (ENCODERS,),
    ),
    Mutant(
        "caches below the lowest layer that trains are kept",
        "layers/composite.py",
        "if run.keep and name not in forgotten:",
        "if run.keep:",
        (ENCODERS,),
    ),
    Mutant(
        "the gradient of an encoder block without its shortcut",
        "models/bert.py",
        "return dr + back(Q, dq)",
        "return back(Q, dq)",
        (ENCODERS,),
    ),
    Mutant(
        "attention after a past counts its queries from zero",
        "layers/attention.py",
        "query = query + spans.offsets.reshape(-1, 1, 1)",
        "pass",
        (GENERATION,),
    ),
    Mutant(
        "rows after a past have the positions of a new sequence",
        "sequences.py",
        "positions = positions + offsets.repeat(lengths)",
        "pass",
        (SEQUENCES,),
    ),
    Mutant(
        "a past writes new rows over the first ones",
        "sequences.py",
        "offsets[:, np.newaxis] + np.arange(T)",
        "0 * offsets[:, np.newaxis] + np.arange(T)",
        (SEQUENCES,),
    ),
    Mutant(
        "a past keeps the first sequences instead of the given ones",
        "sequences.py",
        "attention: (K[sequences], V[sequences])",
        "attention: (K[: len(sequences)], V[: len(sequences)])",
        (SEQUENCES,),
    ),
    Mutant(
        "all pairs of a rotary head turn by other angles",
        "layers/rotary.py",
        "base ** (-np.arange(0, d, 2) / d)",
        "base ** (-np.arange(0, d, 2) / (2 * d))",
        (ATTENTION,),
    ),
    Mutant(
        "the gradient of SwiGLU without the slope of its gate",
        "models/llama.py",
        "back(GATE, dh * u * slope)",
        "back(GATE, dh * u)",
        (DECODERS,),
    ),
    Mutant(
        "the gradient of a Llama block without its shortcut",
        "models/llama.py",
        "return da + back(NORM1, dn)",
        "return back(NORM1, dn)",
        (DECODERS,),
    ),
    Mutant(
        "the gradient of a GPT-2 block without its shortcut",
        "models/gpt2.py",
        "da = dy + back(NORM2, dm)",
        "da = back(NORM2, dm)",
        (DECODERS,),
    ),
    Mutant(
        "queries and keys of GPT-2 swapped",
        "models/gpt2.py",
        "q, k, v = np.split",
        "k, q, v = np.split",
        (DECODERS,),
    ),
    Mutant(
        "the gradient of a tied table from one of its uses",
        "models/causal.py",
        'gradients[name] = gradients[name] + own["weight"]',
        "pass",
        (DECODERS,),
    ),
    Mutant(
        "an encoder is accepted as the body of a decoder",
        "models/causal.py",
        "all(block.attention.causal for block in body.blocks.values())",
        "body.blocks",
        (DECODERS,),
    ),
    Mutant(
        "a generator reads the first token of a prompt",
        "models/generation.py",
        "h[spans.starts + spans.lengths - 1]",
        "h[spans.starts]",
        (GENERATION,),
    ),
    Mutant(
        "draws of a generator depend on which prompts are left",
        "models/generation.py",
        "self.random.random(count)[prompts]",
        "self.random.random(len(prompts))",
        (GENERATION,),
    ),
    Mutant(
        "top_k leaves out the smallest of the k",
        "models/generation.py",
        "z[z < smallest]",
        "z[z <= smallest]",
        (GENERATION,),
    ),
    Mutant(
        "a generator runs past the last position",
        "models/generation.py",
        "longest + new - 1 > model.positions",
        "longest + new - 2 > model.positions",
        (GENERATION,),
    ),
    Mutant(
        "tasks stay where they were when a sentence leaves the batch",
        "models/generation.py",
        "[names[i] for i in indices]",
        "[names[i] for i in range(len(indices))]",
        (GENERATION,),
    ),
    Mutant(
        "a second head beside a tied one is accepted",
        "io/pretrained.py",
        'if not np.array_equal(table, getattr(model.head, "weight")):',
        "if False:",
        (DECODER_FILES,),
    ),
    Mutant(
        "a sliding window is ignored",
        "io/_model_config.py",
        "_is_integer(window) and window >= positions",
        "_is_integer(window)",
        (DECODER_FILES,),
    ),
    Mutant(
        "scaled rotary positions are ignored",
        "io/_model_config.py",
        'if scaling != "default" or',
        "if scaling is None or",
        (DECODER_FILES,),
    ),
    Mutant(
        "the gradient of an embedding takes rows in the order of the batch",
        "layers/embedding.py",
        'order = index.argsort(axis=None, kind="stable")',
        "order = np.arange(index.size)",
        ("tests/layers/test_embedding.py",),
    ),
    Mutant(
        "the gradient of LayerNorm without its mean",
        "layers/normalization.py",
        "dn - _mean(dn) - n * _mean(n * dn)",
        "dn - n * _mean(n * dn)",
        (NORMS,),
    ),
    Mutant(
        "the gradient of RMSNorm without the norm",
        "layers/normalization.py",
        "dx = u * (dn - n * _mean(n * dn))",
        "dx = u * dn",
        (NORMS,),
    ),
    Mutant(
        "epsilon outside the root of LayerNorm",
        "layers/normalization.py",
        "np.sqrt(_mean(centred * centred) + self.epsilon)",
        "(np.sqrt(_mean(centred * centred)) + self.epsilon)",
        (NORMS,),
    ),
    # ---------------------------------------------------------------- GGUF
    Mutant(
        "stored weights: the lower halves",
        "kernels/stored.py",
        "np.left_shift(bits, 16,",
        "np.left_shift(bits, 15,",
        (STORED,),
    ),
    Mutant(
        "stored weights: a tile replaces the sum of those before",
        "kernels/stored.py",
        "y += x[:, part] @ widened",
        "y[...] = x[:, part] @ widened",
        (STORED,),
    ),
    Mutant(
        "stored weights: a transpose is the matrix",
        "kernels/stored.py",
        "StoredMatrix(self.bits, not self.transposed)",
        "StoredMatrix(self.bits, self.transposed)",
        (STORED,),
    ),
    Mutant(
        "stored weights: widened all at once",
        "kernels/stored.py",
        "height = max(1, TILE // columns)",
        "height = rows",
        (STORED,),
    ),
    Mutant(
        "stored weights: the whole room for the last tile",
        "kernels/stored.py",
        "yield part, room[: part.stop - start]",
        "yield part, room[: rows]",
        (STORED,),
    ),
    Mutant(
        "stored weights: the matrix can be written",
        "kernels/stored.py",
        "        self.bits.flags.writeable = False\n",
        "",
        (STORED,),
    ),
    Mutant(
        "stored weights: queries as llama.cpp stores them",
        "io/_gguf_llama.py",
        "array = array if heads is None else rows_of_halves(array, heads)",
        "array = array if heads is None or as_stored else rows_of_halves(array, heads)",
        (STORED,),
    ),
    Mutant(
        "generate: the seed is ignored",
        "cli/generate.py",
        "rng=arguments.seed",
        "rng=0",
        (GENERATE,),
    ),
    Mutant(
        "generate: the rank is ignored",
        "cli/generate.py",
        "rank=arguments.rank,",
        "",
        (GENERATE,),
    ),
    Mutant(
        "generate: the end of a text is shown",
        "cli/generate.py",
        "        if token == tokenizer.end:\n            return\n",
        "",
        (GENERATE,),
    ),
    Mutant(
        "generate: control characters reach the terminal",
        "cli/generate.py",
        "printable(char) for char in text",
        "char for char in text",
        (GENERATE,),
    ),
    Mutant(
        "generate: the adapter is ignored",
        "cli/_decoders.py",
        "    return adapted, words",
        "    return model, words",
        (GENERATE,),
    ),
    Mutant(
        "GGUF: rows of queries and keys as llama.cpp stores them",
        "io/_gguf_llama.py",
        "array = array if heads is None else rows_of_halves(array, heads)",
        "array = array",
        (GGUF_LLAMA,),
    ),
    Mutant(
        "GGUF: keys by the number of query heads",
        "io/_gguf_llama.py",
        '"k_proj": config.get("num_key_value_heads") or heads',
        '"k_proj": heads',
        (GGUF_LLAMA,),
    ),
    Mutant(
        "GGUF: gate and up change places",
        "io/_gguf_llama.py",
        '"ffn_gate": "mlp.gate_proj",\n    "ffn_up": "mlp.up_proj",',
        '"ffn_gate": "mlp.up_proj",\n    "ffn_up": "mlp.gate_proj",',
        (GGUF_LLAMA,),
    ),
    Mutant(
        "GGUF: always tied",
        "io/_gguf_llama.py",
        '"output.weight" not in file',
        "True",
        (GGUF_LLAMA,),
    ),
    Mutant(
        "GGUF: biases are ignored",
        "io/_gguf_llama.py",
        "|.*\\.bias|",
        "|",
        (GGUF_LLAMA,),
    ),
    Mutant(
        "GGUF: scaled rotary positions are ignored",
        "io/_gguf_llama.py",
        '"llama.rope.scaling.type": ("none",),',
        '"llama.rope.scaling.type": ("none", "yarn"),',
        (GGUF_LLAMA,),
    ),
    Mutant(
        "GGUF: digits are not apart",
        "io/_gguf_tokenizer.py",
        "individual_digits=True",
        "individual_digits=False",
        (GGUF_TEXT,),
    ),
    Mutant(
        "GGUF: special tokens are text",
        "io/_gguf_tokenizer.py",
        "special=type_ == SPECIAL",
        "special=False",
        (GGUF_TEXT,),
    ),
    Mutant(
        "texts: a piece ends inside a character",
        "text.py",
        'if text != shown and not text.endswith("\\ufffd"):',
        "if text != shown:",
        (GGUF_TEXT,),
    ),
    Mutant(
        "texts: padding is decoded",
        "text.py",
        'integer("each of ids", token)) >= 0]',
        'integer("each of ids", token)) >= -1]',
        (GGUF_TEXT,),
    ),
    Mutant(
        "GGUF: shapes in the order of the file",
        "io/_gguf_header.py",
        "range(dimensions))[::-1]",
        "range(dimensions))",
        (GGUF,),
    ),
    Mutant(
        "GGUF: the upper halves of Q4_1 first",
        "io/gguf.py",
        "= q & 15, q >> 4",
        "= q >> 4, q & 15",
        (GGUF,),
    ),
    Mutant(
        "GGUF: Q4_1 without its minimum",
        "io/gguf.py",
        "    x += _halves(stored[:, 2:4])\n",
        "",
        (GGUF,),
    ),
    Mutant(
        "GGUF: Q8_0 read as unsigned",
        "io/gguf.py",
        "stored[:, 2:].view(np.int8)",
        "stored[:, 2:]",
        (GGUF,),
    ),
    Mutant(
        "GGUF: data without alignment",
        "io/_gguf_header.py",
        "start = _padded(reader.position, alignment)",
        "start = reader.position",
        (GGUF,),
    ),
    Mutant(
        "GGUF: reads beyond the file",
        "io/_gguf_header.py",
        "if count > self.size - begin:",
        "if count > self.size:",
        (GGUF,),
    ),
    Mutant(
        "GGUF: a key may occur twice",
        "io/_gguf_header.py",
        "if key in metadata:",
        "if not key:",
        (GGUF,),
    ),
    Mutant(
        "GGUF: half a block",
        "io/_gguf_header.py",
        "(shape[-1] if shape else 1) % storage.values",
        "math.prod(shape) % storage.values",
        (GGUF,),
    ),
    Mutant(
        "GGUF: tensors may overlap",
        "io/_gguf_header.py",
        "if begin != _padded(end, alignment):",
        "if begin > _padded(end, alignment):",
        (GGUF,),
    ),
    Mutant(
        "the last columns of a product of few rows are left out",
        "kernels/panels.py",
        "    if whole < n:\n        y_rows[:, whole:]",
        "    if False:\n        y_rows[:, whole:]",
        ("tests/test_kernels.py",),
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
    # ---------------------------------------------------------------- training on text
    Mutant(
        "next token: prompts are learned too",
        "models/next_token.py",
        "[-1] * (len(prompt) - 1) + answer",
        "prompt[1:] + answer",
        (NEXT,),
    ),
    Mutant(
        "next token: targets one token late",
        "models/next_token.py",
        "inputs = [(prompt + answer)[:-1]",
        "inputs = [(prompt + answer)[1:]",
        (NEXT,),
    ),
    Mutant(
        "next token: the mean over all rows",
        "models/next_token.py",
        "labels[piece], len(rows))",
        "labels[piece], len(labels))",
        (NEXT,),
    ),
    Mutant(
        "next token: ignored rows have a loss",
        "models/next_token.py",
        "np.flatnonzero(labels >= 0)",
        "np.flatnonzero(labels >= -1)",
        (NEXT,),
    ),
    Mutant(
        "next token: all logits at once",
        "models/next_token.py",
        "max(1, PIECE // self.head.output_size)",
        "len(labels)",
        (NEXT,),
    ),
    Mutant(
        "next token: the mean of means of pieces",
        "models/next_token.py",
        "total += loss\n        return total / max(len(rows), 1)",
        "total += loss / len(piece)\n        return total",
        (NEXT,),
    ),
    Mutant(
        "next token: the maximum stays in",
        "models/next_token.py",
        "        z -= z.real.max(axis=-1, keepdims=True)\n",
        "",
        (NEXT,),
    ),
    Mutant(
        "next token: a head that trains loses its gradient",
        "models/next_token.py",
        'if any(name.startswith(f"{model.head_name}.")',
        'if model is None and any(name.startswith(f"{model.head_name}.")',
        (NEXT,),
    ),
    # ---------------------------------------------------------------- adapters with whole tensors
    Mutant(
        "whole tensors: a trained head is not extracted",
        "factors/weights.py",
        "found |= trained_tensors(child, _join(path, name))",
        "trained_tensors(child, _join(path, name))",
        (WHOLE,),
    ),
    Mutant(
        "whole tensors: a head is written in the layout of the model",
        "factors/weights.py",
        "        return layer.in_layout(array).T  # (out, in)",
        "        return array",
        (WHOLE,),
    ),
    Mutant(
        "whole tensors: an applied head does not train",
        "models/adapting.py",
        "train=(*_kept(model, train), *replace)",
        "train=_kept(model, train)",
        (WHOLE,),
    ),
    Mutant(
        "whole tensors: an applied bias of a base does not train",
        "io/_applying.py",
        '        adapter.frozen -= {"base"}\n',
        "",
        (WHOLE,),
    ),
    Mutant(
        "whole tensors: lora_bias is not scaled",
        "io/_applying.py",
        "weights.layers[path].scaling * weights.biases[path]",
        "weights.biases[path]",
        (WHOLE,),
    ),
    Mutant(
        "whole tensors: unknown tensors are left out",
        "io/_peft_tensors.py",
        "            whole[key] = tensor\n    stored.check_all_taken()",
        "            whole[key] = tensor",
        (WHOLE, "tests/io/test_peft.py"),
    ),
    Mutant(
        "whole tensors: the head of a task is taken from the first",
        "io/_applying.py",
        "    for weights in others:",
        "    for weights in ():",
        (WHOLE,),
    ),
    Mutant(
        "whole tensors: a stale configuration is read",
        "io/peft.py",
        "if stored.metadata.get(DIGEST, written := digest(config)) != written:",
        "if stored.metadata.get(DIGEST, written := digest(config)) != written and False:",
        (WHOLE,),
    ),
    Mutant(
        "merge: rows are replaced in the first window only",
        "io/_merging.py",
        "new[indices[inside] - first] = values[inside]",
        "new[indices[inside]] = values[inside]",
        (MERGE_WHOLE,),
    ),
    Mutant(
        "merge: a bias is added in the wrong direction when it is subtracted",
        "io/_merging.py",
        "change = self._signed(self.adapter.layers[path].scaling) * self.adapter.biases",
        "change = self.adapter.layers[path].scaling * self.adapter.biases",
        (MERGE_WHOLE,),
    ),
    Mutant(
        "merge: a tied head is changed without being asked",
        "io/_merging.py",
        "        if tied and self.untie:",
        "        if tied:",
        (MERGE_WHOLE,),
    ),
    Mutant(
        "merge: a stranger is added as a head",
        "io/_merging.py",
        "if not (may_be_new(self.adapter.config, key) or tied):",
        "if False:",
        (MERGE_WHOLE,),
    ),
    Mutant(
        "merge: verification does not look at new tensors",
        "io/merge.py",
        "for key in dict.fromkeys([*old, *steps]):",
        "for key in old:",
        (MERGE_WHOLE,),
    ),
    Mutant(
        "patterns: a run ends one character early",
        "io/_patterns.py",
        "return (((starts & where) + where) ^ where) | starts",
        "return (((starts & where) + where) ^ where) & where | starts",
        (PATTERNS,),
    ),
    Mutant(
        "patterns: groups may be repeated",
        "io/_patterns.py",
        "        if not isinstance(atom, _Char):\n            raise ValueError",
        "        if not isinstance(atom, _Char):\n            return atom\n            raise ValueError",
        (PATTERNS,),
    ),
    Mutant(
        "JSON: the last of two equal keys counts",
        "io/_json.py",
        "if len(value) < len(pairs):",
        "if False:",
        ("tests/io/test_peft.py",),
    ),
    Mutant(
        "combine: different heads are not noticed",
        "factors/whole.py",
        "if not np.array_equal(whole.setdefault(key, tensor), tensor):",
        "if whole.setdefault(key, tensor) is None:",
        ("tests/cli/test_toolbox_whole.py",),
    ),
    Mutant(
        "diff: whole tensors are not compared",
        "cli/diff.py",
        "    one, other = other_changes(first), other_changes(second)",
        "    one, other = {}, {}",
        ("tests/cli/test_toolbox_whole.py",),
    ),
]


def copied(folder):
    """Copy the library and its tests to a folder."""
    ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("lora_np", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def outcome(folder, tests):
    """Run tests in a folder and return the exit code of pytest and its output."""
    environment = os.environ | {
        "HYPOTHESIS_PROFILE": "mutants",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def judged(mutant):
    """Test a mutant: the outcome, whether it is as it should be, the time in seconds, and the test that caught the bug."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        file = folder / "lora_np" / mutant.file
        source = file.read_text(encoding="utf-8")
        if source.count(mutant.old) != 1:
            return f"found {source.count(mutant.old)} times", False, 0.0, mutant.file
        file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        code, output = outcome(folder, mutant.tests)
    word = {0: "SURVIVED", 1: "caught"}.get(code, "BROKEN")
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    by = failed[0].split("::")[-1].partition(" - ")[0] if failed else output[-300:] if code > 1 else ""
    return word, code == 1, time.monotonic() - begin, by


def unchanged(mutants):
    """An error message if the tests fail on an unchanged copy, or import another one; otherwise an empty string."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        where = subprocess.run(
            [sys.executable, "-c", "import lora_np; print(lora_np.__file__)"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        if not Path(where.stdout.strip()).resolve().is_relative_to(folder.resolve()):
            return f"the tests of the copy would import {where.stdout.strip()}"
        code, output = outcome(folder, sorted({test for mutant in mutants for test in mutant.tests}))
    return "" if code == 0 else f"the tests do not pass without a bug:\n{output[-3000:]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="list the bugs and exit")
    parser.add_argument("-k", default="", metavar="NAME", help="only bugs whose names contain NAME")
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="the number of bugs to test in parallel (default: 2)"
    )
    options = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if options.k in mutant.name]
    if options.list or not mutants:
        print("\n".join(f"{mutant.file:28} {mutant.name}" for mutant in mutants) or "no such bug")
        return int(not mutants)
    begin = time.monotonic()
    right = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        problem = pool.submit(unchanged, mutants)
        for mutant, (word, good, seconds, by) in zip(mutants, pool.map(judged, mutants), strict=True):
            right += good
            print(f"{word:16} {seconds:5.1f} s  {mutant.name:70} {by}", flush=True)
    if problem.result():
        print(problem.result())
    print(f"{right} of {len(mutants)} caught, {time.monotonic() - begin:.0f} s")
    return int(right < len(mutants) or bool(problem.result()))


if __name__ == "__main__":
    sys.exit(main())
