"""Bugs planted in tasks with ranks."""

from planted.mutant import Mutant

RANKED = "tests/adapters/test_ranked_tasks.py"
VERBS = "tests/models/test_tasks.py"
MODELS = "tests/test_ranked_tasks_in_models.py"
SLICES, TASKS, RANKS, STORAGE = (
    f"adapters/{name}.py" for name in ("task_slices", "ranked_tasks", "task_ranks", "task_storage")
)

MUTANTS = [
    Mutant("a slice has the scaling of all components", SLICES, "scaling_at(self.rank)", "scaling", (RANKED,)),
    Mutant(
        "the rows of a task at several ranks all use the first",
        SLICES,
        "codes[here[rank[here] == each]] = len(names)",
        "pass",
        (RANKED,),
    ),
    Mutant(
        "the last rank of a task replaces the gradients of the others",
        SLICES,
        "whole[part] += gradient[part]",
        "whole[part] = gradient[part]",
        (RANKED,),
    ),
    Mutant(
        "a task whose rows are all empty has no rank",
        SLICES,
        ".tolist() or [branch.rank]",
        ".tolist()",
        (RANKED,),
    ),
    Mutant(
        "frozen mode trains all components in mixed batches",
        SLICES,
        "_slice(branch, rank, own.trained_from(rank))",
        "_slice(branch, rank, 0)",
        (RANKED,),
    ),
    Mutant(
        "frozen mode at the full rank uses the whole branch",
        SLICES,
        "branch if rank == branch.rank and not trained_from else",
        "branch if rank == branch.rank else",
        (RANKED,),
    ),
    Mutant(
        "rows of other tasks must have active ranks too",
        TASKS,
        "rank = rank[run.tasks.codes == task]",
        "pass",
        (RANKED,),
    ),
    Mutant(
        "tasks that are absent train",
        TASKS,
        "names = (self._current_task,) if run.tasks is None else run.tasks.names",
        "names = tuple(self._task_ranks)",
        (RANKED,),
    ),
    Mutant(
        "some deployment ranks are set before all are checked",
        TASKS,
        "            self._ranks_of(name).check_rank(rank)\n",
        "            self._ranks_of(name).set_deployment_rank(rank)\n",
        (RANKED,),
    ),
    Mutant(
        "invalid ranks are found after the branch is drawn",
        TASKS,
        "            RankDistribution.of(active_ranks, rank, rank_distribution)\n",
        "",
        (RANKED,),
    ),
    Mutant(
        "each task has a separate generator",
        TASKS,
        "mode, rank_distribution, self._rng)",
        "mode, rank_distribution)",
        (RANKED,),
    ),
    Mutant(
        "a removed task keeps its ranks",
        "adapters/task_choice.py",
        "        self._task_ranks.pop(task_name, None)\n",
        "",
        (RANKED,),
    ),
    Mutant(
        "the ranks of a replaced branch keep the old one",
        "adapters/task_choice.py",
        "                self._task_ranks[name] = ranks.of(branch, self._rng)\n",
        "                pass\n",
        (RANKED,),
    ),
    Mutant(
        "a new branch of lower rank is deployed above it",
        RANKS,
        "min(self._deployment_rank, ranks.ranks[-1])",
        "ranks.ranks[-1]",
        (RANKED,),
    ),
    Mutant(
        "the components of tasks without data are sorted",
        RANKS,
        "[] if tasks is not None and self.task_name not in tasks else",
        "",
        (RANKED,),
    ),
    Mutant(
        "ranks are not listened to",
        STORAGE,
        "return super()._listeners() | {",
        "return super()._listeners() or {",
        (RANKED,),
    ),
    Mutant(
        "files lose the deployment ranks",
        STORAGE,
        '("current_task", "task_deployment_ranks") if self._task_ranks else ("current_task",)',
        '("current_task",)',
        (RANKED,),
    ),
    Mutant(
        "a copy with other branches shares the ranks",
        STORAGE,
        "{name: copy.copy(ranks) for name, ranks in self._task_ranks.copy().items()}",
        "self._task_ranks",
        (RANKED,),
    ),
    Mutant(
        "a merged task has all components",
        "adapters/multilora.py",
        "merge_weights(rank=self.task_deployment_ranks.get(task_name))",
        "merge_weights()",
        (RANKED,),
    ),
    Mutant(
        "a mixed graph has all components of each task",
        "io/_onnx_rows.py",
        "branch if rank is None else branch.at_rank(rank)",
        "branch",
        (MODELS,),
    ),
    Mutant(
        "folders lose the ranks of tasks",
        "io/_applying.py",
        "branches, ranks=ranks)",
        "branches)",
        (MODELS,),
    ),
    Mutant(
        "shards sort the components of every task",
        "distributed/batches.py",
        "return frozenset[str | None]().union(*names) if len(names) == len(self.sizes) else None",
        'return frozenset(["a", "b"])',
        (MODELS,),
    ),
    Mutant(
        "a task is added to some adapters before all have been asked",
        "models/tasks.py",
        "adapter.check_task(task_name, rank, alpha, active_ranks, **options)",
        "adapter.add_task(task_name, rank, alpha, active_ranks, **options)",
        (VERBS,),
    ),
    Mutant(
        "a task is removed from some adapters before all have been asked",
        "models/tasks.py",
        "        if len(adapter) == 1:\n",
        "        if len(adapter) > 1:\n            adapter.remove_task(task_name)\n        else:\n",
        (VERBS,),
    ),
    Mutant(
        "a task with an invalid dropout is found after the draw",
        TASKS,
        '        fraction("dropout", dropout)\n',
        "",
        (VERBS,),
    ),
    Mutant(
        "iterating stumbles over new tasks",
        "adapters/task_choice.py",
        "return iter(list(self._tasks))",
        "return iter(self._tasks)",
        (VERBS,),
    ),
]
