"""Bugs planted in what lora_np/sklearn does with sparse and with unscaled input."""

from planted.mutant import Mutant

SPARSE = "tests/sklearn/test_sparse.py"

MUTANTS = [
    Mutant(
        "sparse input becomes an array before the training",
        "training/samples.py",
        "if isinstance(inputs, RowsOnDemand):",
        "if False:",
        (SPARSE,),
    ),
    Mutant(
        "sparse input is predicted in one pass",
        "sklearn/sparse.py",
        "predict_in_batches(model, X, tasks, ROWS)",
        "predict_in_batches(model, X, tasks, len(X))",
        (SPARSE,),
    ),
    Mutant(
        "the tasks of sparse rows are those of the first rows",
        "training/samples.py",
        "else tasks[piece])",
        "else tasks[: len(inputs[piece])])",
        (SPARSE,),
    ),
    Mutant(
        "scaling is judged by the sum of squares",
        "sklearn/scaling.py",
        "squares.mean(axis=0",
        "squares.sum(axis=0",
        (SPARSE,),
    ),
]
