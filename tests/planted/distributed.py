"""Bugs planted in lora_np/distributed."""

from planted.mutant import Mutant

APART = "tests/test_tasks_apart.py"
ROWS = "tests/test_distributed_rows.py"
VALIDATION = "tests/test_distributed_validation.py"
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
        "distributed/workers.py",
        "piece.samples, piece.task_weights, own)",
        "piece.samples, piece.task_weights and dict.fromkeys(piece.task_weights, 1.0), own)",
        (APART,),
    ),
    # ---------------------------------------------------------------- validation
    Mutant(
        "shards: the patience counts again in a resumed run",
        "distributed/training.py",
        "        self.monitor.resume()\n",
        "",
        (VALIDATION,),
    ),
    Mutant(
        "shards: the best parameters are not put back",
        "distributed/training.py",
        "        self.monitor.put_back_best()\n",
        "",
        (VALIDATION,),
    ),
    Mutant(
        "shards: a finished run is resumed",
        "distributed/training.py",
        "            if self.monitor.is_over:\n                break\n            progress",
        "            progress",
        (VALIDATION,),
    ),
    Mutant(
        "shards: the end of a patient run is not saved",
        "distributed/training.py",
        "progress.step == progress.steps or self.monitor.is_over",
        "progress.step == progress.steps",
        (VALIDATION,),
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
        "probabilities count for each class",
        "functions/losses.py",
        'super().terms(targets) if targets.dtype.kind == "f" else labels_of_rows(targets)',
        "labels_of_rows(targets)",
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
