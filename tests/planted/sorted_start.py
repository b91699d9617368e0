"""Bugs planted in the sorted start of nested dropout."""

from planted.mutant import Mutant

SORTED = "tests/test_sorted_start.py"

MUTANTS = [
    Mutant(
        "sorting in ascending order",
        "training/sorting.py",
        "a * U, (sigma / a)[:, np.newaxis] * Vt",
        "a * U[:, ::-1], ((sigma / a)[:, np.newaxis] * Vt)[::-1]",
        (SORTED,),
    ),
    Mutant(
        "sorting shares singular values equally",
        "training/sorting.py",
        "np.linalg.norm(A) / math.sqrt(A.shape[1]) or 1.0",
        "float(np.sqrt(sigma[0])) or 1.0",
        (SORTED,),
    ),
    Mutant(
        "components without effect keep their rows of B",
        "training/sorting.py",
        "A, B = A.copy(), np.zeros_like(B)",
        "A, B = A.copy(), B.copy()",
        (SORTED,),
    ),
    Mutant(
        "sorting in the precision of the layer",
        "training/sorting.py",
        "_sorted(A[:, :rank].astype(float), B[:rank].astype(float))",
        "_sorted(A[:, :rank].astype(np.float16).astype(float), B[:rank].astype(float))",
        (SORTED,),
    ),
    Mutant(
        "sorting one branch before the next is checked",
        "training/sorting.py",
        "        factors |= {name_a: A, name_b: B}\n",
        "        factors |= {name_a: A, name_b: B}\n        model.set_parameter(name_a, A)\n",
        (f"{SORTED}::test_what_cannot_be_sorted_is_refused_before_anything_changes",),
    ),
    Mutant(
        "sorting keeps the optimizer's state",
        "training/sorting.py",
        "optimizer.reset(factors)",
        "pass",
        (SORTED,),
    ),
    Mutant(
        "sorting discards the state of every parameter",
        "training/sorting.py",
        "optimizer.reset(factors)",
        "optimizer.reset()",
        (SORTED,),
    ),
    Mutant(
        "sorting changes frozen factors",
        "training/sorting.py",
        "model.named_parameters().items()",
        "model.named_parameters(frozen=True).items()",
        (SORTED,),
    ),
    Mutant(
        "the warm-up uses the highest active rank, drawn or not",
        "adapters/rank_choice.py",
        "self.rank_at(math.nextafter(1.0, 0.0))",
        "self.active_ranks[-1]",
        (SORTED,),
    ),
    Mutant(
        "components are sorted in frozen mode",
        "adapters/rank_choice.py",
        'if self.mode == "frozen":\n            raise InvalidOperationError(f"{self.layer_name}: mode must be \'full',
        "if False:\n            raise InvalidOperationError(f\"{self.layer_name}: mode must be 'full",
        (SORTED,),
    ),
    Mutant(
        "components are sorted before each step",
        "training/sorted_start.py",
        "if 0 < self.start == step:",
        "if 0 < self.start <= step:",
        (SORTED,),
    ),
    Mutant(
        "the warm-up is one step longer than it says",
        "training/sorted_start.py",
        "self._is_warmup = step < self.start",
        "self._is_warmup = step <= self.start",
        (SORTED,),
    ),
    Mutant(
        "a training may consist of its warm-up",
        "training/sorting.py",
        "if length >= steps:",
        "if length > steps:",
        (SORTED,),
    ),
    Mutant(
        "nested dropout sorts before its warm-up",
        "training/nested_dropout.py",
        "if 0 < step == length:",
        "if step == 0 < length:",
        (SORTED,),
    ),
    Mutant(
        "a checkpoint pads ranks in the file with rank 1",
        "distributed/checkpoint.py",
        "zip_longest(*ranks, fillvalue=0)",
        "zip_longest(*ranks, fillvalue=1)",
        (SORTED,),
    ),
    Mutant(
        "a run resumes with another length of its warm-up",
        "distributed/training.py",
        '"sorted_start": self.ranks.start or None',
        '"sorted_start": None',
        (SORTED,),
    ),
]
