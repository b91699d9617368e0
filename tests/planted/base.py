"""Bugs planted in lora_np/base."""

from planted.mutant import Mutant

CONTRACT = "tests/layers/test_contract.py"
BASE = "tests/layers/test_base.py"
SEQUENTIAL = "tests/layers/test_sequential.py"
ADAPTERS = "tests/adapters/test_contract.py"
DYLORA = "tests/adapters/test_dylora.py"
MULTILORA = "tests/adapters/test_multilora.py"
MIXED = "tests/adapters/test_mixed.py"
CALLS = "tests/fuzz/test_fuzz.py"
THREADS = "tests/test_threads.py"
PACKING = "tests/layers/test_packing.py"
RUN = "tests/test_run.py"
ADAPTING = "tests/test_adapting.py"
BRANCHES = "tests/adapters/test_branches.py"

MUTANTS = [
    # ---------------------------------------------------------------- trap 4: modes
    Mutant(
        "trap 4: evaluation draws ranks",
        "base/listening.py",
        "(_drawn(listeners), _seed(listeners)) if training else",
        "(_drawn(listeners), _seed(listeners)) if keep else",
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
        "float32 grows to float64",
        "base/layer.py",
        "x = real_array(name, input, self.dtype, copy=copy)",
        "x = real_array(name, input, float, copy=copy)",
        (f"{CONTRACT}::test_float32_is_kept",),
    ),
    Mutant(
        "a refused call draws a rank",
        "base/listening.py",
        "        ranks = None if rank is None else self._rank(rank, x, listeners)\n",
        "        ranks = _drawn(listeners) if rank is None else self._rank(rank, x, listeners)\n",
        (CALLS,),
    ),
    Mutant(
        "a layer that changes is saved half",
        "base/serializable.py",
        "        if description != header(self) or arrays.keys()",
        "        if False and arrays.keys()",
        (THREADS,),
    ),
    Mutant(
        "the penalty of a frozen base counts",
        "base/parameters.py",
        "for child in self._trained_children())",
        "for child in self.children().values())",
        (f"{ADAPTERS}::test_the_penalty_of_a_base_counts_only_where_it_trains",),
    ),
    Mutant(
        "a packed weight can be written to",
        "base/packable.py",
        "                    layer._make_read_only(matrix)\n",
        "",
        (PACKING,),
    ),
    Mutant(
        "unpacking gives a layer another array",
        "base/packable.py",
        "if not (array.flags.writeable or kernels.unpack(array)):",
        "if not array.flags.writeable:",
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
        "an input gradient that is not needed is computed",
        "base/layer.py",
        "inputs=need_input_grad)",
        "inputs=True)",
        (f"{CONTRACT}::test_an_input_gradient_that_nobody_needs_is_not_given",),
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
        "results are views of arguments",
        "base/memory.py",
        "return result.copy() if np.may_share_memory(result, argument) else result",
        "return result",
        (f"{CONTRACT}::test_results_never_share_memory_with_anything",),
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
        "set_settings(layers, given)",
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
        "the trained parts of layers inside a model are lost",
        "base/listening.py",
        "parts |= prefixed(path, own) if path else own",
        "parts |= {} if path else own",
        (f"{DYLORA}::test_components_stand_still_inside_a_model_too",),
    ),
    Mutant(
        "the trained parts of a base that is an adapter are lost",
        "base/listening.py",
        'found[f"{name}.{path}" if path else name] = listener',
        'found[f"{name}.{path}"] = listener',
        (f"{DYLORA}::test_components_stand_still_inside_a_model_too",),
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
        "the features of a single row count as rows",
        "base/listening.py",
        "len(x) if x.ndim > 1 else None",
        "len(x)",
        (RUN,),
    ),
    Mutant(
        "a second draw for one pass",
        "base/listening.py",
        "drawn, seed = (_drawn(listeners),",
        "drawn, seed = (_drawn(listeners) and _drawn(listeners),",
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
        "        if training:\n            run = run._replace",
        "        if keep:\n            run = run._replace",
        (MIXED,),
    ),
    Mutant(
        "training draws although a rank is given",
        "base/listening.py",
        "rank=_drawn(listeners) if rank is None else ranks",
        "rank=_drawn(listeners)",
        (f"{DYLORA}::test_a_given_rank_draws_nothing",),
    ),
    Mutant(
        "a container loses its name",
        "base/parameters.py",
        ' | {"layer_name": layer.layer_name})',
        ")",
        (ADAPTING,),
    ),
    Mutant(
        "a branch of another dtype is accepted",
        "base/parameters.py",
        "if (layer.input_size, layer.output_size, layer.dtype) != (like.input_size, like.output_size, like.dtype):",
        "if (layer.input_size, layer.output_size) != (like.input_size, like.output_size):",
        (BRANCHES,),
    ),
    Mutant(
        "any attribute can be set",
        "base/fixed_attributes.py",
        'if name[0] != "_" and name not in _declared(',
        "if False and name not in _declared(",
        (ADAPTING,),
    ),
]
