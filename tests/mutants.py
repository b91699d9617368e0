"""Plant bugs, one at a time, and see that the tests catch each.

    python tests/mutants.py [--list] [-k NAME] [--jobs N]

Each mutant is one textual change of the library. The library and its tests are copied to a temporary folder, the change is
made there, and a few of the tests run until the first one fails. The exit code is 1 where a bug survives, where the text to
change is no longer found exactly once, and where the tests fail without a bug.
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
KERNELS = "tests/test_kernels.py"
PACKING = "tests/layers/test_packing.py"
STEPS = (f"{DYLORA}::test_each_component_is_stepped_only_by_its_own_gradients",)


class Mutant(NamedTuple):
    """A bug: its name, the file under lora_np, the exact text and what takes its place, the tests that must notice."""

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
        "dA = sum_outer(trained_dh, x).T",
        "dA = sum_outer(trained_dh, x).reshape(-1, r - first)",
        (LORA, STANDARD),
    ),
    Mutant(
        "trap 1: dB formed from the transposed product",
        "layers/lora.py",
        "dB = sum_outer(h, dy)",
        "dB = sum_outer(dy, h).reshape(r - first, -1)",
        (LORA, STANDARD),
    ),
    Mutant(
        "trap 1: dX of the branch with A read row by row",
        "layers/lora.py",
        "dx = product(dh, A.T) if inputs",
        "dx = product(dh, A.reshape(r, -1)) if inputs",
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
        'twin.set_parameter("weight", self.in_layout(matrix))',
        'twin.set_parameter("weight", matrix.reshape(self.weight.shape))',
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
        "adapters/base.py",
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
        "adapters/base.py",
        "merge_weights(rank=chosen.rank)",
        "merge_weights()",
        (DYLORA,),
    ),
    Mutant(
        "merging at a drawn rank",
        "adapters/base.py",
        "base, chosen = self.mergeable_base(), self.select(training=False)",
        "base, chosen = self.mergeable_base(), self.select(training=self.is_training)",
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
    # ---------------------------------------------------------------- trap 3: the training helper
    Mutant(
        "trap 3: the training helper ignores its loss",
        "adapters/dylora.py",
        "descent = Descent(self, loss, optimizer)",
        'descent = Descent(self, __import__("lora_np").MeanSquaredError(), optimizer)',
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
        "adapters/dylora.py",
        "with self.training_mode(True), self.own_training_ranks():",
        "self.train()\n        if True:",
        (f"{DYLORA}::test_training_runs_in_training_mode_and_gives_the_mode_back",),
    ),
    Mutant(
        "the parameters of a loss that is not finite are kept",
        "training/step.py",
        "self._go_back()\n",
        "pass\n",
        ("tests/test_descent.py",),
    ),
    # ---------------------------------------------------------------- trap 4: modes
    Mutant(
        "trap 4: evaluation draws ranks",
        "adapters/dylora.py",
        "        if training:\n",
        "        if True:\n",
        (f"{DYLORA}::test_trap_4_evaluation_mode_takes_the_deployment_rank_in_a_whole_model",),
    ),
    Mutant(
        "trap 4: forward always trains",
        "layers/base.py",
        "y, cache = apply(x, training=self.is_training)",
        "y, cache = apply(x, training=True)",
        (f"{CONTRACT}::test_evaluation_mode_draws_no_random_number",),
    ),
    Mutant(
        "trap 4: predict in the layer's mode",
        "layers/base.py",
        "y, _ = self.apply(x) if",
        "y, _ = self.apply(x, training=self.is_training) if",
        (f"{CONTRACT}::test_predict_draws_no_random_number",),
    ),
    Mutant(
        "trap 4: the mode does not reach the layers inside",
        "layers/base.py",
        "for layer in self.walk().values():\n            layer._is_training = bool(is_training)",
        "self._is_training = bool(is_training)",
        (f"{CONTRACT}::test_the_mode_reaches_every_layer_inside",),
    ),
    Mutant(
        "trap 4: a model does not hand its mode down",
        "layers/sequential.py",
        "layer.apply(x, training=training)",
        "layer.apply(x)",
        (SEQUENTIAL,),
    ),
    Mutant(
        "trap 4: an adapter does not hand its mode to its base",
        "adapters/base.py",
        "base = self.base_layer.apply(x, training=training)",
        "base = self.base_layer.apply(x)",
        (f"{ADAPTERS}::test_the_mode_of_a_pass_reaches_base_and_branch",),
    ),
    Mutant(
        "a mode is not given back after an error",
        "layers/base.py",
        "try:\n            yield\n        finally:\n            for layer, mode in kept:\n                layer",
        "yield\n        for layer, mode in kept:\n            layer",
        (BASE,),
    ),
    # ---------------------------------------------------------------- trap 5: tasks
    Mutant(
        "trap 5: backward after a switch of the task",
        "layers/base.py",
        'self._check_routing("backward", tasks, branches)',
        "pass",
        (MULTILORA,),
    ),
    Mutant(
        "trap 5: a step after a switch of the task",
        "layers/base.py",
        'self._check_routing("a step", self._pending.tasks, self._pending.branches)',
        "pass",
        (MULTILORA,),
    ),
    Mutant(
        "trap 5: a switch inside a model goes unnoticed",
        "layers/base.py",
        "branches += child.routing(tasks)",
        "branches += ()",
        (MULTILORA, SEQUENTIAL),
    ),
    Mutant(
        "trap 5: a task that was removed and added again counts as the same",
        "adapters/multilora.py",
        "tuple(self._tasks.get(name, name) for name in names if",
        "tuple((name,) if name in self._tasks else name for name in names if",
        (MULTILORA,),
    ),
    Mutant(
        "adding a task makes it current",
        "adapters/multilora.py",
        "self._tasks[name] = branch",
        "self._tasks[name] = branch\n        self._current_task = name",
        (MULTILORA,),
    ),
    Mutant(
        "removing the current task makes the last current",
        "adapters/multilora.py",
        "self._current_task = next(iter(self._tasks))",
        "self._current_task = list(self._tasks)[-1]",
        (MULTILORA,),
    ),
    Mutant(
        "the last task can be removed",
        "adapters/multilora.py",
        "if len(self._tasks) == 1:",
        "if not self._tasks:",
        (MULTILORA,),
    ),
    Mutant(
        "a blank name is a task",
        "adapters/multilora.py",
        "not isinstance(name, str) or not name.strip()",
        "not isinstance(name, str) or not name",
        (MULTILORA,),
    ),
    # ---------------------------------------------------------------- routing
    Mutant(
        "routing gives the groups to the wrong tasks",
        "adapters/mixed.py",
        "self._tasks = list(number)",
        "self._tasks = list(number)[::-1]",
        (MIXED,),
    ),
    Mutant(
        "routing does not restore the order of the rows",
        "adapters/mixed.py",
        "y.take(self._inverse, axis=0)",
        "y.take(self._order, axis=0)",
        (MIXED,),
    ),
    Mutant(
        "a batch that is not sorted counts as sorted",
        "adapters/mixed.py",
        "(numbers[1:] < numbers[:-1]).any()",
        "(numbers[1:] < numbers[:-1]).all()",
        (MIXED,),
    ),
    Mutant(
        "a batch that is sorted is moved",
        "adapters/mixed.py",
        "(numbers[1:] < numbers[:-1]).any()",
        "len(numbers)",
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
        "self._sorted(dy) * scaling",
        "self._sorted(dy) * 1",
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
        "layers = [None if task is None else",
        "layers = [like if task is None else",
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
        'Selection(f"tasks.{task}", self._tasks[task])',
        'Selection(f"tasks.{self._current_task}", self._tasks[task])',
        (MIXED,),
    ),
    Mutant(
        "a mixed batch does not reach the base's own tasks",
        "adapters/base.py",
        "base = self.base_layer.apply_routed(x, tasks, training=training)",
        "base = self.base_layer.apply(x, training=training)",
        (MULTILORA,),
    ),
    Mutant(
        "an unknown task in a mixed batch",
        "layers/base.py",
        "if unknown:",
        "if False:",
        (MULTILORA,),
    ),
    # ---------------------------------------------------------------- trap 6: the flat vector
    Mutant(
        "trap 6: the flat vector is kept",
        "layers/base.py",
        "return self._flat(self.named_parameters().values())",
        'return self.__dict__.setdefault("flat", self._flat(self.named_parameters().values())).copy()',
        (f"{CONTRACT}::test_trap_6_the_flat_vector_is_never_stale",),
    ),
    Mutant(
        "the flat vector column by column",
        "layers/base.py",
        "*(array.ravel() for array in arrays)",
        '*(array.ravel("F") for array in arrays)',
        (f"{CONTRACT}::test_the_flat_vector_holds_the_arrays_row_by_row",),
    ),
    Mutant(
        "the flat gradient in another order than the parameters",
        "layers/base.py",
        "gradients.get(name, np.zeros_like(array)) for name, array in arrays.items())",
        "gradients.get(name, np.zeros_like(array)) for name, array in sorted(arrays.items(), key=lambda item: item[0]))",
        (CONTRACT,),
    ),
    Mutant(
        "a flat vector that goes in shifted",
        "layers/base.py",
        "            start += array.size\n        self._assign(values)",
        "            start += len(array)\n        self._assign(values)",
        (CONTRACT,),
    ),
    # ---------------------------------------------------------------- trap 7: the border
    Mutant(
        "trap 7: the feature size is not checked",
        "layers/base.py",
        'last_axis("input", x, self.input_size)',
        "pass",
        (CONTRACT,),
    ),
    Mutant(
        "the shape of the output gradient is not checked",
        "layers/base.py",
        'same_shape("output_gradient", dy, output_shape)',
        "pass",
        (CONTRACT,),
    ),
    Mutant(
        "a deployment rank that is not active",
        "adapters/dylora.py",
        'self._deployment_rank = self._active("rank", rank)',
        "self._deployment_rank = rank",
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
        "layers/base.py",
        'x = real_array("input", input, self.dtype, copy=copy)',
        'x = real_array("input", input, float, copy=copy)',
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
        "return (difference * difference).sum() / n, difference * (2 / n)",
        "return (difference * difference).sum() / n, difference * (1 / n)",
        (LOSSES,),
    ),
    # ---------------------------------------------------------------- scaling and ranks
    Mutant("forward without the scaling", "layers/lora.py", " h *= s", " h *= 1", (LORA,)),
    Mutant("backward without the scaling", "layers/lora.py", "dh *= s", "dh *= 1", (LORA,)),
    Mutant(
        "the paper's scaling by the full rank",
        "layers/lora.py",
        '(rank if self.scaling_rule == "paper"',
        '(self.rank if self.scaling_rule == "paper"',
        (LORA,),
    ),
    Mutant("rslora without the root", "layers/lora.py", "else math.sqrt(rank))", "else rank)", (LORA,)),
    Mutant(
        "one component too many",
        "layers/lora.py",
        "r = self.rank if rank is None else rank\n",
        "r = self.rank if rank is None else min(rank + 1, self.rank)\n",
        (LORA,),
    ),
    Mutant(
        "gradients beyond the rank are not zero",
        "layers/lora.py",
        "all_dA, all_dB = np.zeros_like(self.matrix_a), np.zeros_like(self.matrix_b)",
        "all_dA, all_dB = 1e-9 * np.ones_like(self.matrix_a), 1e-9 * np.ones_like(self.matrix_b)",
        (f"{DYLORA}::test_gradients_beyond_the_rank_are_exactly_zero",),
    ),
    Mutant(
        "frozen mode trains one component instead of the block",
        "adapters/dylora.py",
        "return self._active_ranks[index - 1] if index else 0",
        "return rank - 1",
        (f"{DYLORA}::test_frozen_mode_trains_every_component_over_the_sparse_ranks",),
    ),
    Mutant(
        "frozen mode trains all components up to the rank",
        "adapters/dylora.py",
        'self._previous(rank) if self.mode == "frozen" else 0',
        "0",
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
        "adapters/dylora.py",
        "max_rank), rank_distribution)",
        "max_rank), None)",
        (f"{DYLORA}::test_ranks_are_drawn_as_the_distribution_says",),
    ),
    Mutant(
        "a draw on the edge of two ranks",
        "adapters/dylora.py",
        'side="right"',
        'side="left"',
        (f"{DYLORA}::test_rank_at_a_quantile",),
    ),
    Mutant(
        "the ranks of rows do not go round",
        "adapters/dylora.py",
        "max(rows, 1)) % 1)",
        "max(rows, 1)).clip(0, 0.999))",
        (f"{DYLORA}::test_each_rank_has_its_share_of_the_rows_to_within_one",),
    ),
    Mutant(
        "every row with the gate of the highest rank",
        "layers/lora.py",
        "by_rank[ranks - 1].reshape",
        "by_rank[np.full_like(ranks, r - 1)].reshape",
        (DYLORA,),
    ),
    Mutant(
        "the gradient forgets the ranks of rows",
        "layers/lora.py",
        "        dh *= s\n",
        "        dh *= s if isinstance(s, float) else 1.0\n",
        (DYLORA,),
    ),
    Mutant(
        "a pass with ranks of rows moves every component",
        "layers/lora.py",
        "(slice(None), slice(first, r))",
        "(slice(None), slice(None))",
        (f"{DYLORA}::test_components_beyond_every_rows_rank_stand_still",),
    ),
    Mutant(
        "each layer draws its own ranks of rows",
        "training/fit.py",
        "adapter.row_quantile = quantile",
        "adapter.row_quantile = rng.random()",
        ("tests/test_training.py",),
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
        "adapters/base.py",
        "else add(base_dx, branch_dx, room=branch_dx)",
        "else base_dx",
        (STANDARD,),
    ),
    Mutant(
        "the input gradient of the base is dropped",
        "adapters/base.py",
        "else add(base_dx, branch_dx, room=branch_dx)",
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
        "adapters/base.py",
        "branch_dx, own = branch.vjp(",
        "self.base_layer.vjp(dy, base_cache)\n        branch_dx, own = branch.vjp(",
        (f"{ADAPTERS}::test_the_weight_gradient_of_a_frozen_base_is_never_computed",),
    ),
    Mutant(
        "a frozen layer of a model trains",
        "layers/sequential.py",
        "parameters and name not in self.frozen_children and layer.supports_training",
        "parameters and layer.supports_training",
        (SEQUENTIAL,),
    ),
    Mutant(
        "the penalty of a frozen base counts",
        "layers/base.py",
        "for name, child in self.children().items() if name not in self.frozen_children\n",
        "for name, child in self.children().items()\n",
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
        "the last rows that fill no tile are left out",
        "kernels/products.py",
        "    if whole < len(x):\n        last = _last_rows(whole, len(x))\n        np.matmul(x[last], W, out=y[last])\n",
        "",
        (KERNELS,),
    ),
    Mutant(
        "the last columns that fill no panel are left out",
        "kernels/products.py",
        "if self.columns < n:",
        "if False:",
        (KERNELS,),
    ),
    Mutant(
        "the partial products of a tall matrix are not added",
        "kernels/products.py",
        "            y += part\n",
        "            y[...] = part\n",
        (KERNELS,),
    ),
    Mutant(
        "panels of the wrong side",
        "kernels/products.py",
        "return PackedMatrix(self.matrix.T, self.transposed, self.panels)",
        "return PackedMatrix(self.matrix.T, self.panels, self.transposed)",
        (KERNELS,),
    ),
    Mutant(
        "the columns that fill no tile are left out",
        "kernels/products.py",
        "if whole < n:",
        "if False:",
        (KERNELS,),
    ),
    Mutant(
        "tiles for any type",
        "kernels/products.py",
        'return type(x) is np.ndarray is type(W) and x.dtype == W.dtype and x.dtype.char in "fd"',
        "return True",
        (KERNELS,),
    ),
    Mutant(
        "a packed weight can be written to",
        "layers/dense.py",
        "            self.weight.flags.writeable = False\n",
        "",
        (PACKING,),
    ),
    Mutant(
        "a pack outlives the array that it was made of",
        "layers/dense.py",
        "if pack is not None and pack.weight is self.weight and not self.weight.flags.writeable:",
        "if pack is not None:",
        (PACKING,),
    ),
    Mutant(
        "unpacking frees the array that another layer has packed",
        "layers/dense.py",
        'self.weight = self.weight.copy(order="K")',
        "self.weight.flags.writeable = True",
        (PACKING,),
    ),
    Mutant(
        "a weight that trains is packed",
        "layers/base.py",
        "found += child.walk().values() if name in self.frozen_children else child._at_rest()",
        "found += child.walk().values()",
        (PACKING,),
    ),
    Mutant(
        "a copy takes the pack along",
        "layers/dense.py",
        'return super().__getstate__() | {"_pack": None}',
        "return super().__getstate__()",
        (PACKING,),
    ),
    Mutant(
        "unfreezing keeps the pack",
        "layers/sequential.py",
        "            self._layers[name].unpack()\n",
        "            pass\n",
        (PACKING,),
    ),
    Mutant(
        "the input gradient is computed for nobody",
        "layers/base.py",
        "inputs=need_input_grad)",
        "inputs=True)",
        (f"{CONTRACT}::test_an_input_gradient_that_nobody_needs_is_not_given",),
    ),
    # ---------------------------------------------------------------- memory
    Mutant(
        "a second backward adds",
        "layers/base.py",
        "self._pending = _Pending(gradients,",
        "gradients = {name: g + self.gradients.get(name, 0) for name, g in gradients.items()}\n"
        "        self._pending = _Pending(gradients,",
        (f"{CONTRACT}::test_a_second_backward_replaces_the_gradients",),
    ),
    Mutant(
        "gradients are used twice",
        "layers/base.py",
        "gradient * scale\n            self._forget()",
        "gradient * scale",
        (f"{CONTRACT}::test_a_step_uses_the_gradients_up",),
    ),
    Mutant(
        "a pass outlives the step",
        "layers/base.py",
        "array += update\n        self._forget()",
        "array += update\n        self.clear_gradients()",
        (BASE,),
    ),
    Mutant(
        "every layer forgets what it was applied to",
        "layers/dense.py",
        "None if self.activation is identity else z",
        "None",
        (DENSE,),
    ),
    Mutant(
        "a step uphill",
        "layers/base.py",
        "np.array(-rate, self.dtype)",
        "np.array(rate, self.dtype)",
        (f"{CONTRACT}::test_a_step_moves_exactly_what_has_a_gradient",),
    ),
    Mutant(
        "an update that is half done when it is refused",
        "layers/base.py",
        "            pairs.append((parameter, value))\n",
        "            parameter += value\n",
        (PACKING,),
    ),
    Mutant(
        "the cache holds the caller's buffer",
        "layers/base.py",
        "self._forward(self._checked_input(input, copy=True), self.apply, None)",
        "self._forward(self._checked_input(input), self.apply, None)",
        (f"{CONTRACT}::test_the_caller_may_overwrite_its_buffers",),
    ),
    Mutant(
        "the cache of a mixed batch holds the caller's buffer",
        "layers/base.py",
        "x = self._checked_rows(input, copy=True)",
        "x = self._checked_rows(input)",
        (MULTILORA,),
    ),
    Mutant(
        "results are views of arguments",
        "layers/base.py",
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
        "layers/base.py",
        "for layer in self.walk().values():\n            layer._forget()",
        "self._forget()",
        (BASE,),
    ),
    Mutant(
        "copies keep the pending pass",
        "layers/base.py",
        'return self.__dict__ | {"_pass": None, "_pending": None}',
        "return dict(self.__dict__)",
        (f"{CONTRACT}::test_a_copy_starts_without_a_pending_pass",),
    ),
    Mutant(
        "clones share their name",
        "layers/base.py",
        'layer.layer_name = f"{type(layer).__name__}_{next(_numbers)}"',
        "pass",
        (f"{CONTRACT}::test_a_clone_has_a_name_of_its_own",),
    ),
    Mutant(
        "files without the settings",
        "layers/serialization.py",
        "_set(layers, given)",
        "pass",
        (f"{DYLORA}::test_the_deployment_rank_survives_copies_and_files",),
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
    Mutant("VeRA's forward without b", "adapters/vera.py", "return t * b, (h, t", "return t, (h, t", (VERA,)),
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
        "dp *= -self.learning_rate\n        return update\n\n\ndef _room",
        "dp *= -self.learning_rate\n"
        "        return update - 1e-3 * self.weight_decay * parameter * self.learning_rate\n\n\ndef _room",
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
        "layers/sequential.py",
        "parts |= prefixed(name, layer.active_parts(own))",
        "pass",
        (f"{DYLORA}::test_components_stand_still_inside_a_model_too",),
    ),
]


def copied(folder):
    """The library and its tests in a folder."""
    ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("lora_np", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def outcome(folder, tests):
    """The exit code of pytest in a folder, and what it printed."""
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
    """What became of a mutant: a word, whether it is the right one, the seconds it took, the test that caught it."""
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
    """Whether the tests pass on a copy as it is, and are tests of that copy."""
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
            return f"the copy's tests would import {where.stdout.strip()}"
        code, output = outcome(folder, sorted({test for mutant in mutants for test in mutant.tests}))
    return "" if code == 0 else f"the tests do not pass without a bug:\n{output[-3000:]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="show the bugs and end")
    parser.add_argument("-k", default="", metavar="NAME", help="only bugs with this in their names")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many to run at a time (default: 2)")
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
