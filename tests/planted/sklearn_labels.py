"""Bugs planted in what lora_np/sklearn does with several labels for each sample."""

from planted.mutant import Mutant

MULTILABEL = "tests/sklearn/test_multilabel.py"

MUTANTS = [
    Mutant(
        "labels are compared as classes",
        "sklearn/objectives.py",
        "        return sigmoid(logits)",
        "        return softmax(logits)",
        (MULTILABEL,),
    ),
    Mutant(
        "logarithms of probabilities of labels have the wrong sign of the logit",
        "sklearn/objectives.py",
        "-softplus(-logits)",
        "-softplus(logits)",
        (MULTILABEL,),
    ),
    Mutant(
        "two labels become the two classes of an MLPClassifier",
        "sklearn/mlp.py",
        " and len(labels) == 2 and not has_indicators:",
        " and len(labels) == 2:",
        (MULTILABEL,),
    ),
    Mutant(
        "indicators may be other numbers than 0 and 1",
        "sklearn/objectives.py",
        "if not np.isin(y, (0, 1)).all():",
        "if not np.isfinite(y).all():",
        (MULTILABEL,),
    ),
]
