"""Bugs planted in lora_np/sklearn/mlp.py."""

from planted.mutant import Mutant

MLP = "tests/sklearn/test_mlp.py"

MUTANTS = [
    Mutant(
        "the logits of a binary MLPClassifier are in the wrong order",
        "sklearn/mlp.py",
        "np.insert(array, 0, 0, axis=-1)",
        "np.insert(array, 1, 0, axis=-1)",
        (MLP,),
    ),
    Mutant(
        "a bias is lost where linear layers are multiplied",
        "sklearn/mlp.py",
        "bias = first.bias @ weight + bias",
        "bias = 0 * first.bias @ weight + bias",
        (MLP,),
    ),
    Mutant(
        "a converted MLPClassifier keeps the moments of a step that was not its own",
        "sklearn/mlp.py",
        '    vars(mlp).pop("_optimizer", None)  # with the moments of the step above\n',
        "",
        (MLP,),
    ),
    Mutant(
        "a conversion merges the adapters of the given model",
        "sklearn/mlp.py",
        "Sequential([network.clone()])",
        "Sequential([network])",
        (MLP,),
    ),
]
