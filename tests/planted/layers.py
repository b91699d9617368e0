"""Bugs planted in lora_np/layers."""

from planted.mutant import Mutant

DENSE = "tests/layers/test_dense.py"
LORA = "tests/layers/test_lora.py"
SEQUENTIAL = "tests/layers/test_sequential.py"
ADAPTERS = "tests/adapters/test_contract.py"
STANDARD = "tests/adapters/test_standard.py"
DYLORA = "tests/adapters/test_dylora.py"
MULTILORA = "tests/adapters/test_multilora.py"
TASK_MEMORY = "tests/adapters/test_task_memory.py"
PACKING = "tests/layers/test_packing.py"
RUN = "tests/test_run.py"
WEIGHTS = "tests/test_adapter_weights.py"
ATTENTION = "tests/layers/test_attention.py"
NORMS = "tests/layers/test_normalization.py"
ENCODERS = "tests/models/test_bert.py"
GENERATION = "tests/models/test_generation.py"

DROPOUT = "tests/adapters/test_dropout.py"

MUTANTS = [
    # ---------------------------------------------------------------- dropout
    Mutant(
        "dropout: kept elements are not scaled up",
        "layers/dropout.py",
        "Mask(uniform >= probability, 1 / (1 - probability))",
        "Mask(uniform >= probability, 1.0)",
        (f"{DROPOUT}::test_elements_are_dropped_with_the_given_probability_and_kept_ones_are_scaled",),
    ),
    Mutant(
        "dropout: the probability of keeping taken for that of dropping",
        "layers/dropout.py",
        "Mask(uniform >= probability, 1",
        "Mask(uniform < probability, 1",
        (f"{DROPOUT}::test_elements_are_dropped_with_the_given_probability_and_kept_ones_are_scaled",),
    ),
    Mutant(
        "dropout: all layers of a model have the same mask",
        "layers/dropout.py",
        "np.random.default_rng((*run.seed, key))",
        "np.random.default_rng(run.seed)",
        (f"{DROPOUT}::test_layers_of_a_model_have_different_masks",),
    ),
    Mutant(
        "dropout: all passes have the same mask",
        "layers/dropout.py",
        "np.random.default_rng((*run.seed, key))",
        "np.random.default_rng(key)",
        (f"{DROPOUT}::test_equal_seeds_draw_equal_passes_and_no_two_passes_are_equal",),
    ),
    Mutant(
        "dropout: the gradient of the input is not masked",
        "layers/dropout.py",
        "return dx if dx is None or mask is None else mask(dx)",
        "return dx",
        (f"{DROPOUT}::test_gradients_with_the_mask_held",),
    ),
    Mutant(
        "dropout: in inference too",
        "layers/dropout.py",
        "if not (self._dropout and run.training):",
        "if not (self._dropout and run.seed):",
        (f"{DROPOUT}::test_a_training_pass_needs_a_seed",),
    ),
    Mutant(
        "dropout: the key is drawn before the factors",
        "layers/lora.py",
        "random = generator(rng)",
        "random = generator(rng); dropout and random.random()",
        (f"{DROPOUT}::test_dropout_leaves_the_initial_factors_alone",),
    ),
    Mutant(
        "dropout: files forget the state",
        "layers/dropout.py",
        'self.settings = ("dropout_state",)',
        "self.settings = ()",
        (f"{DROPOUT}::test_files_keep_dropout_and_the_masks_to_come",),
    ),
    Mutant(
        "dropout: a mixed batch has the probability of its first task",
        "adapters/mixed.py",
        "of_rows = of_tasks[self._tasks.codes]",
        "of_rows = of_tasks[np.zeros_like(self._tasks.codes)]",
        (f"{DROPOUT}::test_each_row_of_a_mixed_batch_is_masked_with_the_probability_of_its_task",),
    ),
    Mutant(
        "dropout: DoRA drops the input of the base",
        "adapters/dora.py",
        "y = z + (c * u - (w - b))",
        "y = w + (c * u - (w - b))",
        (f"{DROPOUT}::test_dora_drops_the_input_of_the_change_of_the_weight",),
    ),
    Mutant(
        "dropout: a refused pass draws a seed",
        "base/listening.py",
        "ranks = None if rank is None else self._rank(rank, x, listeners)",
        "ranks = _seed(listeners) and None if rank is None else self._rank(rank, x, listeners)",
        (f"{DROPOUT}::test_a_refused_pass_draws_nothing",),
    ),
    Mutant(
        "dropout: the shards of a step share their masks",
        "training/moment.py",
        "moments.append(self._replace(settings=settings_of(model.walk())))",
        "moments.append(self)",
        (f"{DROPOUT}::test_shards_of_a_step_have_different_masks",),
    ),
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
        "merging without the scaling",
        "layers/lora.py",
        "return s * (A @ B)  #",
        "return A @ B  #",
        (LORA, STANDARD),
    ),
    Mutant(
        "trap 4: a model does not pass its mode on",
        "layers/composite.py",
        "            y, cache = self._layers[name].apply(",
        "            run = run._replace(training=False)\n            y, cache = self._layers[name].apply(",
        (SEQUENTIAL,),
    ),
    Mutant(
        "a branch with other factors is still gathered",
        "layers/movable_factors.py",
        'self.__dict__["place"] = None',
        "pass",
        (TASK_MEMORY,),
    ),
    Mutant(
        "read-only factors move",
        "layers/movable_factors.py",
        "isinstance(factor, np.ndarray) and factor.flags.writeable for factor",
        "isinstance(factor, np.ndarray) for factor",
        (TASK_MEMORY,),
    ),
    Mutant(
        "copies share the memory of the original",
        "layers/movable_factors.py",
        'super().__getstate__() | {"place": None}',
        "super().__getstate__()",
        (TASK_MEMORY,),
    ),
    # ---------------------------------------------------------------- trap 8: activations
    Mutant(
        "trap 8: the derivative at the post-activation",
        "layers/dense.py",
        "is identity else z)",
        "is identity else y)",
        (DENSE,),
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
        "frozen mode leaves a part of the input gradient out",
        "layers/lora.py",
        "dx = product(dh, A.T) if inputs",
        "dx = product(dh[..., first:], A[:, first:].T) if inputs",
        (DYLORA,),
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
        "A begins with a standard deviation of one",
        "layers/lora.py",
        "random, std=1 / math.sqrt(self.rank))",
        "random, std=1.0)",
        (LORA,),
    ),
    Mutant(
        "B does not begin at zero",
        "layers/lora.py",
        "self.matrix_b: Array = np.zeros((self.rank, self.output_size), self.dtype)",
        "self.matrix_b: Array = np.full((self.rank, self.output_size), 1e-3, self.dtype)",
        (f"{ADAPTERS}::test_it_begins_as_its_base",),
    ),
    Mutant(
        "a frozen layer of a model trains",
        "layers/composite.py",
        "return name not in self.frozen and self._layers[name].supports_training",
        "return self._layers[name].supports_training",
        (SEQUENTIAL,),
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
        "unfreezing keeps the panels",
        "layers/sequential.py",
        "            self._layers[name].unpack()\n",
        "            pass\n",
        (PACKING,),
    ),
    Mutant(
        "a layer forgets its pre-activation",
        "layers/dense.py",
        "None if self.activation is identity else z",
        "None",
        (DENSE,),
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
        "inference keeps every cache",
        "layers/composite.py",
        "if run.keep and name not in forgotten:",
        "if name not in forgotten:",
        (f"{SEQUENTIAL}::test_inference_takes_the_memory_of_one_layer",),
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
    # ---------------------------------------------------------------- models: adapting, merging, selecting
    Mutant(
        "a model with other layers loses its frozen names",
        "layers/sequential.py",
        "self._layers | dict(changed), frozen=sorted(self.frozen))",
        "self._layers | dict(changed))",
        (SEQUENTIAL,),
    ),
    Mutant(
        "a slice at a rank has the alpha of the whole",
        "layers/lora.py",
        "self.scaling_at(r) * r, **",
        "self.alpha, **",
        (WEIGHTS,),
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
        "caches below the lowest layer that trains are kept",
        "layers/composite.py",
        "if run.keep and name not in forgotten:",
        "if run.keep:",
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
        "all pairs of a rotary head turn by other angles",
        "layers/rotary.py",
        "base ** (-np.arange(0, d, 2) / d)",
        "base ** (-np.arange(0, d, 2) / (2 * d))",
        (ATTENTION,),
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
]
