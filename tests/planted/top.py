"""Bugs planted at the top of lora_np."""

from planted.mutant import Mutant

LORA = "tests/layers/test_lora.py"
DYLORA = "tests/adapters/test_dylora.py"
MULTILORA = "tests/adapters/test_multilora.py"
MIXED = "tests/adapters/test_mixed.py"
TESTING = "tests/test_testing.py"
VALIDATION = "tests/test_validation.py"
ATOMIC = "tests/test_atomic_file.py"
HOSTILE = "tests/io/test_hostile_npz.py"
RUN = "tests/test_run.py"
SEQUENCES = "tests/test_sequences.py"
ENCODERS = "tests/models/test_bert.py"
GGUF_TEXT = "tests/test_text_gguf.py"

MUTANTS = [
    # ---------------------------------------------------------------- routing
    Mutant(
        "routing gives the groups to the wrong tasks",
        "run.py",
        "cls.coded(tuple(number), codes)",
        "cls.coded(tuple(number)[::-1], codes)",
        (MIXED,),
    ),
    Mutant(
        "a batch that is not sorted counts as sorted",
        "run.py",
        "(codes[1:] >= codes[:-1]).all()",
        "(codes[1:] >= codes[:-1]).any()",
        (MIXED,),
    ),
    Mutant(
        "a batch that is sorted is moved",
        "run.py",
        "(codes[1:] >= codes[:-1]).all()",
        "not len(codes)",
        (MIXED,),
    ),
    Mutant(
        "a damaged entry of a file is loaded",
        "_archive.py",
        "or zlib.crc32(content) != entry.CRC:",
        "or False:",
        ("tests/test_io_npz.py",),
    ),
    Mutant(
        "an entry is read from where another one is",
        "_archive.py",
        'if local[:4] != b"PK\\3\\4" or name != ',
        "if False and name != ",
        ("tests/test_io_npz.py",),
    ),
    Mutant(
        "arrays that are stored in Fortran order are transposed",
        "_archive.py",
        'order="F" if is_fortran else "C"',
        'order="C"',
        ("tests/test_io_npz.py",),
    ),
    Mutant(
        "alpha zero taken for the default",
        "_validation.py",
        "return float(rank) if number < 0 else number",
        "return float(rank) if number <= 0 else number",
        (LORA,),
    ),
    # ---------------------------------------------------------------- trust: files, extremes
    Mutant(
        "a file gets its name before its bytes are on the disk",
        "_archive.py",
        "            os.fsync(file.fileno())",
        "            pass",
        (ATOMIC,),
    ),
    Mutant(
        "a link is replaced",
        "_archive.py",
        'os.path.realpath(file_path("path", path))',
        'file_path("path", path)',
        (ATOMIC,),
    ),
    Mutant(
        "a private file becomes readable",
        "_archive.py",
        "0o666 if mode is None else mode",
        "0o666",
        (ATOMIC,),
    ),
    Mutant("a planted link is followed", "_archive.py", "os.O_CREAT | os.O_EXCL", "os.O_CREAT", (ATOMIC,)),
    Mutant("entries may share their bytes", "_archive.py", "if total > size:", "if False:", (HOSTILE,)),
    Mutant("compressed entries are inflated", "_archive.py", "if entry.compress_type]", "if False]", (HOSTILE,)),
    Mutant(
        "each layer may be as large as the file",
        "_validation.py",
        "_elements_left.set(left - size)",
        "pass",
        (HOSTILE,),
    ),
    Mutant(
        "a vacuous check of a gradient passes",
        "testing.py",
        "            error = np.nan",
        "            error = 0.0",
        (TESTING,),
    ),
    Mutant(
        "a gradient that is not finite counts as vacuous",
        "testing.py",
        "if outside.any() or not np.isfinite(error):",
        "if outside.any():",
        (TESTING,),
    ),
    Mutant(
        "a gradient of zero counts as vacuous although the true one is not zero",
        "testing.py",
        "error <= TOLERANCES[numeric.step] and not found.any()",
        "not found.any()",
        (TESTING,),
    ),
    Mutant("booleans pass as numbers", "_validation.py", 'NUMBER_KINDS = "iuf"', 'NUMBER_KINDS = "biuf"', (VALIDATION,)),
    Mutant("masks are lost", "_validation.py", 'and hasattr(value, "mask")', 'and hasattr(value, "no")', (VALIDATION,)),
    Mutant(
        "the quantiles of rows are not wrapped modulo 1",
        "run.py",
        "rows) % 1)",
        "rows).clip(0, 0.999))",
        (f"{DYLORA}::test_each_rank_has_its_share_of_the_rows_to_within_one",),
    ),
    Mutant(
        "the cache of a mixed batch holds the caller's buffer",
        "_validation.py",
        "return array.copy() if copy else array",
        "return array",
        (MULTILORA,),
    ),
    Mutant(
        "tasks for too few rows are accepted",
        "run.py",
        "if len(codes) != rows:",
        "if len(codes) > rows:",
        (MULTILORA,),
    ),
    Mutant(
        "a string is accepted as a sequence of tasks",
        "run.py",
        "if isinstance(tasks, str) or not isinstance(tasks, Iterable):",
        "if not isinstance(tasks, Iterable):",
        (MULTILORA,),
    ),
    Mutant(
        "the number of rows of each task is that of another one",
        "run.py",
        "np.bincount(codes, minlength=len(names)), *sorting(codes)",
        "np.sort(np.bincount(codes, minlength=len(names))), *sorting(codes)",
        (MIXED,),
    ),
    Mutant(
        "the rows of a mixed batch are sorted backwards",
        "run.py",
        'codes.argsort(kind="stable")',
        'codes.argsort(kind="stable")[::-1]',
        (MIXED,),
    ),
    Mutant(
        "the inverse of the order is the order",
        "run.py",
        "inverse[order] = np.arange(len(order))",
        "inverse[...] = order",
        (MIXED,),
    ),
    Mutant(
        "ranks for the wrong number of rows are accepted",
        "run.py",
        "ranks.shape != (rows,)",
        "ranks.ndim != 1",
        (RUN,),
    ),
    Mutant(
        "ranks of rows that are not integers are accepted",
        "run.py",
        'ranks.dtype.kind not in "iu" or ',
        "",
        (RUN,),
    ),
    Mutant(
        "a rank that is not an integer is accepted",
        "run.py",
        'return integer("rank", rank)',
        "return int(rank)",
        (RUN,),
    ),
    # ---------------------------------------------------------------- one draw for a pass
    Mutant(
        "each layer draws its own rank",
        "run.py",
        "layer.rank_at(self.quantile)",
        "layer.rank_at(layer._rng.random())",
        (RUN,),
    ),
    Mutant(
        "the quantiles of rows reach both ends",
        "run.py",
        "np.arange(rows) / rows",
        "np.arange(rows) / max(rows - 1, 1)",
        (DYLORA,),
    ),
    Mutant(
        "positions count over the whole batch",
        "sequences.py",
        "positions = slots % T",
        "positions = np.arange(len(slots))",
        (SEQUENCES,),
    ),
    Mutant(
        "means of sequences divide by the longest length",
        "sequences.py",
        "np.add.reduceat(x, spans.starts) / spans.lengths[:, np.newaxis].astype(x.real.dtype)",
        "np.add.reduceat(x, spans.starts) / spans.shape[1]",
        (SEQUENCES,),
    ),
    Mutant(
        "rows have the tasks of sequences in another order",
        "run.py",
        "self.codes.repeat(lengths)",
        "self.codes[::-1].repeat(lengths)",
        (ENCODERS,),
    ),
    Mutant(
        "rows have the ranks of other sequences",
        "run.py",
        "rank.repeat(self.lengths)",
        "rank.repeat(self.lengths[::-1])",
        (ENCODERS,),
    ),
    Mutant(
        "rows after a past have the positions of a new sequence",
        "sequences.py",
        "positions = positions + offsets.repeat(lengths)",
        "pass",
        (SEQUENCES,),
    ),
    Mutant(
        "a past writes new rows over the first ones",
        "sequences.py",
        "offsets[:, np.newaxis] + np.arange(T)",
        "0 * offsets[:, np.newaxis] + np.arange(T)",
        (SEQUENCES,),
    ),
    Mutant(
        "a past keeps the first sequences instead of the given ones",
        "sequences.py",
        "attention: (K[sequences], V[sequences])",
        "attention: (K[: len(sequences)], V[: len(sequences)])",
        (SEQUENCES,),
    ),
    Mutant(
        "texts: a piece ends inside a character",
        "text.py",
        'if text != shown and not text.endswith("\\ufffd"):',
        "if text != shown:",
        (GGUF_TEXT,),
    ),
    Mutant(
        "texts: padding is decoded",
        "text.py",
        'integer("each of ids", token)) >= 0]',
        'integer("each of ids", token)) >= -1]',
        (GGUF_TEXT,),
    ),
    Mutant(
        "a new folder is filled under its name",
        "_archive.py",
        "    if os.path.isdir(target):\n        yield target\n",
        "    if os.makedirs(target, exist_ok=True) is None:\n        yield target\n",
        ("tests/test_atomic_folder.py",),
    ),
    Mutant(
        "a new folder that failed is left behind",
        "_archive.py",
        "        shutil.rmtree(temporary, ignore_errors=True)\n",
        "        pass\n",
        ("tests/test_atomic_folder.py",),
    ),
    Mutant(
        "the name of a new folder is not flushed",
        "_archive.py",
        "        os.rename(temporary, target)\n        _sync_folder(parent)\n",
        "        os.rename(temporary, target)\n",
        ("tests/test_atomic_folder.py",),
    ),
    Mutant(
        "an error names the temporary folder",
        "_archive.py",
        "        if not str(error.filename).startswith(temporary):\n",
        "        if True:\n",
        ("tests/test_atomic_folder.py",),
    ),
]
