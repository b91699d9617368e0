"""Bugs planted in lora_np/training."""

from planted.mutant import Mutant

DYLORA = "tests/adapters/test_dylora.py"
INTERRUPTS = "tests/test_interrupts.py"
VALIDATION = "tests/test_validation.py"
TRAINING = "tests/test_training.py"
SCHEDULES = "tests/test_schedules.py"
GROUPS = "tests/test_groups.py"
APART = "tests/test_tasks_apart.py"
ACCUMULATION = "tests/test_accumulation.py"
WEIGHTS = "tests/test_row_weights.py"
OPTIMIZERS = "tests/test_optimizers.py"
STEPS = (f"{DYLORA}::test_each_component_is_stepped_only_by_its_own_gradients",)

MUTANTS = [
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
        "each layer draws its own ranks of rows",
        "training/nested_dropout.py",
        "return Draw.of_rows(rng.random(), rows)",
        "return lambda layer: layer.rank_at(Draw.of_rows(rng.random(), rows).quantile)",
        (TRAINING,),
    ),
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
        "Adam's second moment keeps the bias of its start",
        "training/optimizers.py",
        "root = (1 - self.beta2**t) ** 0.5",
        "root = 1.0",
        (OPTIMIZERS,),
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
        "Nesterov momentum without the gradient",
        "training/optimizers.py",
        "            dp += g\n",
        "",
        (OPTIMIZERS,),
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
    # ---------------------------------------------------------------- schedules
    Mutant(
        "the warm-up never reaches the full rate",
        "training/schedules.py",
        "return progress / self.warmup",
        "return progress",
        (SCHEDULES,),
    ),
    Mutant(
        "the decay ignores the warm-up",
        "training/schedules.py",
        "self._after((progress - self.warmup) / (1 - self.warmup))",
        "self._after(progress)",
        (SCHEDULES,),
    ),
    Mutant(
        "a cosine decay without its end",
        "training/schedules.py",
        "self.end + (1 - self.end) * (1 + math.cos(math.pi * u)) / 2",
        "(1 + math.cos(math.pi * u)) / 2",
        (SCHEDULES,),
    ),
    Mutant(
        "the learning rate stays where the schedule ends",
        "training/schedules.py",
        "            optimizer.learning_rate = rate\n",
        "            pass\n",
        (SCHEDULES,),
    ),
    Mutant(
        "every step has the first factor",
        "training/fit.py",
        "set_rate(len(history.step_losses))",
        "set_rate(0)",
        (SCHEDULES,),
    ),
    # ---------------------------------------------------------------- validation and clipping
    Mutant(
        "the norm of the first array alone",
        "training/clipping.py",
        "math.hypot(*map(_norm, gradients.values()))",
        "math.hypot(*list(map(_norm, gradients.values()))[:1])",
        (VALIDATION,),
    ),
    Mutant(
        "small gradients are scaled up to the norm",
        "training/clipping.py",
        "if norm > clip_norm else",
        "if norm else",
        (VALIDATION,),
    ),
    Mutant(
        "the norm overflows",
        "training/clipping.py",
        "largest * math.sqrt(np.square(array / largest).sum(dtype=float))",
        "math.sqrt(np.square(array).sum())",
        (VALIDATION,),
    ),
    Mutant(
        "the last parameters remain",
        "training/fit.py",
        "        validated.put_back_best()\n",
        "        pass\n",
        (VALIDATION,),
    ),
    Mutant(
        "the best parameters are not copied",
        "training/validation.py",
        "{name: p.copy() for name, p in",
        "{name: p for name, p in",
        (VALIDATION,),
    ),
    Mutant(
        "the patience is counted over all epochs",
        "training/validation.py",
        "self.best, self.waited = value, 0",
        "self.best = value",
        (VALIDATION,),
    ),
    Mutant(
        "validation rows have the current task",
        "training/samples.py",
        "model.predict(self.inputs[piece], tasks=names)",
        "model.predict(self.inputs[piece])",
        (VALIDATION,),
    ),
    Mutant(
        "the patience is one epoch longer",
        "training/validation.py",
        "self.waited >= self.patience",
        "self.waited > self.patience",
        (VALIDATION,),
    ),
    # ---------------------------------------------------------------- accumulation
    Mutant(
        "the last piece decides which part is trained",
        "training/accumulation.py",
        "parts[name] = tuple(map(_span, parts[name], theirs[name]))",
        "parts[name] = theirs[name]",
        (ACCUMULATION,),
    ),
    Mutant(
        "an array trained whole by one piece is trained in part",
        "training/accumulation.py",
        "parts.pop(name, None)",
        "pass",
        (ACCUMULATION,),
    ),
    Mutant(
        "the gradients of pieces are not weighted",
        "training/accumulation.py",
        "weighted = gradient * weight",
        "weighted = gradient * 1.0",
        (ACCUMULATION,),
    ),
    Mutant(
        "every pass has the ranks of the first rows",
        "training/nested_dropout.py",
        "own[piece] if isinstance(own, np.ndarray)",
        "own[: piece.stop - piece.start] if isinstance(own, np.ndarray)",
        (ACCUMULATION,),
    ),
    Mutant(
        "a number is added to the loss of each pass",
        "training/step.py",
        "(fraction, *self._differentiated(each, own))",
        "(fraction, 1 + self._differentiated(each, own)[0], *self._differentiated(each, own)[1:])",
        (ACCUMULATION,),
    ),
    # ---------------------------------------------------------------- groups
    Mutant(
        "the last matching group counts",
        "training/groups.py",
        "factors.setdefault(name, factor)",
        "factors[name] = factor",
        (GROUPS,),
    ),
    Mutant(
        "groups without effect",
        "training/step.py",
        "updates[name] = updates[name] * self.rate_factors[name]",
        "pass",
        (GROUPS,),
    ),
    Mutant(
        "a group that matches nothing is accepted",
        "training/groups.py",
        "        if not matching:\n",
        "        if False:\n",
        (GROUPS,),
    ),
    # ---------------------------------------------------------------- averages by task
    Mutant(
        "tasks are averaged over the whole batch",
        "training/fit.py",
        "self.tasks = samples.tasks if by_task else None",
        "self.tasks = None",
        (APART,),
    ),
    Mutant(
        "the losses of tasks are averaged, not added",
        "training/averaging.py",
        "value += weight * mean",
        "value += weight * mean / len(rows_by_task(tasks))",
        (APART,),
    ),
    Mutant(
        "the gradient of a task is not weighted",
        "training/averaging.py",
        "dy[rows] = weight * gradient",
        "dy[rows] = gradient",
        (APART,),
    ),
    Mutant(
        "the fraction of a pass counts twice",
        "training/averaging.py",
        "n / totals[task] / fraction",
        "n / totals[task]",
        (APART,),
    ),
    Mutant(
        "tasks without labels take a step",
        "training/averaging.py",
        "return rows[np.sort(np.concatenate(kept))] if kept else rows",
        "return rows",
        (APART,),
    ),
    Mutant(
        "the validation loss is a mean over all rows",
        "training/validation.py",
        "if not self.by_task or tasks is None:",
        "if True:",
        (APART,),
    ),
    Mutant(
        "an average by task without tasks is accepted",
        "training/averaging.py",
        '== "task" and not has_tasks:',
        '== "task" and False:',
        (APART,),
    ),
    # ---------------------------------------------------------------- weights of rows
    Mutant(
        "weights: rows with weight 0 stay",
        "training/samples.py",
        "kept = weights > 0",
        "kept = weights >= 0",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: they are not those of the batch",
        "training/samples.py",
        "else self.weights[rows]",
        "else self.weights[: len(self.targets[rows])]",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: passes count by their rows",
        "training/step.py",
        "self.loss.terms(each.targets, each.row_weights) for",
        "self.loss.terms(each.targets) for",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: tasks have those of other rows",
        "training/averaging.py",
        "else row_weights[rows]",
        "else row_weights[: len(rows)]",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: the loss of an epoch counts rows",
        "training/fit.py",
        "total += value * weights[batch].sum()",
        "total += value * weights.sum() * len(batch) / rows",
        (WEIGHTS,),
    ),
]
