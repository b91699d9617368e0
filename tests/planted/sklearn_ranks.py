"""Bugs planted in the ranks that tasks of an estimator have."""

from planted.mutant import Mutant

RANKS = "tests/sklearn/test_task_ranks.py"

MUTANTS = [
    Mutant(
        "a task has the rank of the first",
        "sklearn/many_tasks.py",
        "adapter.add_task(task, *self._rank_and_alpha(layer, task))",
        "adapter.add_task(task, *self._rank_and_alpha(layer, tasks[0]))",
        (RANKS,),
    ),
    Mutant(
        "a merged classifier keeps the ranks of all tasks",
        "sklearn/multitask.py",
        "**learned).set_params(rank=self._rank_of(task))",
        "**learned)",
        (RANKS,),
    ),
    Mutant(
        "a task without a rank is noticed only after others have been added",
        "sklearn/many_tasks.py",
        "        self._check_ranks(samples)\n        new = tuple(",
        "        new = tuple(",
        (RANKS,),
    ),
]
