"""Bugs planted in lora_np/distributed."""

from planted.mutant import Mutant

APART = "tests/test_tasks_apart.py"
ROWS = "tests/test_distributed_rows.py"
CHECKPOINTS = "tests/test_distributed.py"

MUTANTS = [
    Mutant(
        "a checkpoint of other data is resumed",
        "training/samples.py",
        "                digest.update(np.ascontiguousarray(array).data)\n",
        "",
        (CHECKPOINTS,),
    ),
    Mutant(
        "a damaged checkpoint moves the generator",
        "training/checkpoint.py",
        "copy.deepcopy(state.random.bit_generator)",
        "state.random.bit_generator",
        (CHECKPOINTS,),
    ),
    Mutant(
        "the state of an optimizer in a checkpoint may have any shape",
        "training/checkpoint.py",
        '            _check_shape(layer, key.rpartition(":")[0], array, may_broadcast=True)',
        "            pass",
        (CHECKPOINTS,),
    ),
    # ---------------------------------------------------------------- schedules of shards
    Mutant(
        "a resumed run starts its schedule again",
        "distributed/training.py",
        "self.set_rate(step)",
        "self.set_rate(number)",
        ("tests/test_distributed.py",),
    ),
    Mutant(
        "a run resumes with another schedule",
        "training/checkpoint.py",
        '"schedule": rates,',
        '"schedule": None,',
        ("tests/test_distributed.py",),
    ),
    Mutant(
        "each shard averages its tasks by itself",
        "distributed/training.py",
        "piece.samples, piece.task_weights, own)",
        "piece.samples, piece.task_weights and dict.fromkeys(piece.task_weights, 1.0), own)",
        (APART,),
    ),
    # ---------------------------------------------------------------- weights of the rows of shards
    Mutant(
        "the weights of a shard are relative to its largest",
        "distributed/batches.py",
        "size.terms * (size.scale / scale)",
        "size.terms * 1.0",
        (ROWS,),
    ),
    Mutant(
        "shards count by their rows",
        "distributed/batches.py",
        "float(counted.sum())",
        "float(len(counted))",
        (ROWS,),
    ),
    Mutant(
        "workers leave out the weights",
        "distributed/worker.py",
        "targets, tasks, row_weights)",
        "targets, tasks, None)",
        (ROWS,),
    ),
    Mutant(
        "a run resumes with shards of other relative weights",
        "distributed/training.py",
        "[len(size.terms), size.scale]",
        "[len(size.terms)]",
        (ROWS,),
    ),
    Mutant(
        "a run resumes with another average",
        "distributed/training.py",
        '"average": "task" if self.workers.job.by_task else "batch",',
        '"average": "batch",',
        (APART,),
    ),
]
