"""Bugs planted in the ONNX export."""

from planted.mutant import Mutant

FILES, MIXED = "tests/io/test_onnx.py", "tests/io/test_onnx_mixed.py"

MUTANTS = [
    Mutant(
        "the base alone in a mixed ONNX file is the first task",
        "io/_onnx_rows.py",
        "for index, branch in enumerate(branches):",
        "for index, branch in enumerate(branches, 1):",
        (MIXED,),
    ),
    Mutant(
        "stacked factors without the scaling of the task",
        "io/_onnx_rows.py",
        "B[index, : branch.rank] = branch.scaling * branch.matrix_b",
        "B[index, : branch.rank] = branch.matrix_b",
        (MIXED,),
    ),
    Mutant(
        "one scaling for all ranks",
        "io/_onnx_rows.py",
        "branch.scaling_at(rank)\n",
        "branch.scaling\n",
        (MIXED,),
    ),
    Mutant(
        "tasks in the order of each adapter",
        "io/_onnx_rows.py",
        "for name in tasks]",
        "for name in inner.task_adapters]",
        (MIXED,),
    ),
    Mutant(
        "adapters with more tasks than the first one",
        "io/_onnx_rows.py",
        "if set(found) != set(tasks):",
        "if not set(found) >= set(tasks):",
        (MIXED,),
    ),
    Mutant(
        "operators of the branches named after the current task",
        "io/_onnx_rows.py",
        'y_of_all = replace(y, layer=f"{prefix}tasks")',
        "y_of_all = y",
        (MIXED,),
    ),
    Mutant(
        "tasks of sequences as tasks of rows",
        "io/_onnx_writer.py",
        "len(self.leading) - 2) for factors",
        "len(self.leading) - 1) for factors",
        (MIXED,),
    ),
    Mutant(
        "Gelu in float64",
        "io/_onnx_operators.py",
        " and node.dtype == np.float32:",
        ":",
        (FILES,),
    ),
    Mutant(
        "Gelu before opset 20",
        "io/_onnx_operators.py",
        "GELU_OPSET = 20",
        "GELU_OPSET = 18",
        (FILES,),
    ),
    Mutant(
        "the approximations of GELU swapped",
        "io/_onnx_operators.py",
        '{gelu.function: "tanh", gelu_exact.function: "none"}',
        '{gelu.function: "none", gelu_exact.function: "tanh"}',
        (FILES,),
    ),
    Mutant(
        "decomposed activations belong to no layer",
        "io/_onnx_operators.py",
        "parents=operands, layer=node.layer)",
        "parents=operands)",
        (FILES,),
    ),
    Mutant(
        "a computed constant takes the name of a parameter",
        "io/_onnx_writer.py",
        "if each not in self.taken and each not in self.reserved)",
        "if each not in self.taken)",
        (FILES,),
    ),
    Mutant(
        "metadata of all tasks of a file with one",
        "io/_onnx_adapters.py",
        "if isinstance(inner, LowRankLayer) and path not in absent:",
        "if isinstance(inner, LowRankLayer):",
        (FILES,),
    ),
    Mutant(
        "a layer inside leaves its path behind",
        "graph/recording.py",
        "_LAYER.reset(outer)",
        "pass",
        (FILES,),
    ),
    Mutant(
        "merged layers lose their path",
        "graph/merging.py",
        "product = replace(node, operation",
        'product = replace(node, layer="", operation',
        (FILES,),
    ),
]
