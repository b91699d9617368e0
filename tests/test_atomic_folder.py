"""New folders of several files appear whole or not at all, whatever ends the process; existing ones file by file."""

import errno
import json
import os
import re
import stat

import numpy as np
import pytest

from lora_np import DenseLayer, MultiLoRAAdapter, Sequential, _archive
from lora_np.factors.weights import AdapterWeights
from lora_np.io import save_mlx, save_peft
from lora_np.io.folders import copy_model_files
from lora_np.io.merge import INDEX, merge_checkpoint
from lora_np.io.safetensors import save_safetensors
from lora_np.layers.lora import LoRALayer
from tests.fuzz.disk import Disk, interrupted
from tests.kinds import randomised

FULL = (errno.ENOSPC, os.strerror(errno.ENOSPC))
posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")


def write(path, names=("a", "b")):
    with _archive.atomic_folder(path) as folder:
        for name in names:
            with _archive.atomic_file(os.path.join(folder, name)) as file:
                file.write(b"new" * 100)


def failing(path, fail):
    """Write two files, then call a function that raises."""
    with _archive.atomic_folder(path) as folder:
        write(folder)
        fail(folder)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- killed at every operation


def of_bytes(path, seed):
    write(path)


def of_tasks(path, seed):
    adapter = MultiLoRAAdapter(DenseLayer(4, 3, rng=0), "german", 2, rng=0)
    adapter.add_task("french", 1)
    save_peft(path, randomised(Sequential({"only": adapter}), seed))


def of_shards(path, seed):
    base = path.with_name("base")
    if not base.exists():
        base.mkdir()
        shards = {"one.weight": "1.safetensors", "two.weight": "2.safetensors"}
        for key, file in shards.items():
            save_safetensors(base / file, {key: np.zeros((3, 4))})
        (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}), encoding="utf-8")
    layers = {name: randomised(LoRALayer(4, 3, rank=2, rng=0), seed) for name in ("one", "two")}
    merge_checkpoint(base, AdapterWeights(layers), path)


def of_mlx(path, seed):
    save_mlx(path, AdapterWeights({"only": randomised(LoRALayer(4, 3, rank=2, rng=0), seed)}))


WRITERS = {"bytes": of_bytes, "tasks": of_tasks, "shards": of_shards, "mlx-lm": of_mlx}
each_writer = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
each_failure = pytest.mark.parametrize("error", [None, FULL], ids=["killed", "disk full"])


@each_failure
@each_writer
def test_after_a_failure_at_any_operation_a_new_folder_is_complete_or_not_there(tmp_path, writer, error):
    path = tmp_path / "folder"
    writer(tmp_path / "whole", 1)
    whole, attempts = contents(tmp_path / "whole"), 0
    for completed in interrupted(lambda: writer(path, 1), error):
        attempts += 1
        assert path.exists() or not completed
        if path.exists():  # complete, perhaps before a failure of the last flush
            assert contents(path) == whole
            path.rename(tmp_path / f"done {attempts}")
    assert attempts > 8


@each_failure
@each_writer
def test_after_a_failure_at_any_operation_each_file_of_an_existing_folder_is_the_old_one_or_the_new_one(
    tmp_path, writer, error
):
    path = tmp_path / "folder"
    found = []
    for seed in (1, 2):
        writer(path, seed)
        (path / "kept").write_bytes(b"kept")
        found.append(contents(path))
    old, new = found
    assert set(old) == set(new)
    for completed in interrupted(lambda: writer(path, 1), error):
        now = {name: data for name, data in contents(path).items() if name.suffix != ".tmp"}
        assert set(now) == set(old)
        assert all(now[name] in (old[name], new[name]) for name in now)
        if completed:
            assert now == old
        else:
            writer(path, 2)


# ---------------------------------------------------------------- what an error leaves behind, and says


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_nothing(tmp_path, kind):
    def fail(folder):
        raise kind

    with pytest.raises(kind):
        failing(tmp_path / "folder", fail)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_temporary_folder_and_names_the_file(tmp_path):
    with Disk() as disk:
        write(tmp_path / "other")
    for at, name in enumerate(disk.done):
        if name not in ("unlink", "remove", "rmdir"):
            path = tmp_path / f"folder{at}"
            with Disk(at, OSError(*FULL)), pytest.raises(OSError, match=re.escape(FULL[1])) as raised:
                write(path)
            assert ".tmp" not in str(raised.value), name
            assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")], name


def test_an_error_about_a_file_names_it_in_the_folder(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(FileNotFoundError) as raised:
        failing(path, lambda folder: write(os.path.join(folder, "inner", "none"), ["no/file"]))
    assert raised.value.filename == str(path / "inner" / "none" / "no" / "file")


def test_an_error_about_another_file_is_raised_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        failing(tmp_path / "folder", lambda folder: os.stat(tmp_path / "elsewhere"))
    assert raised.value.filename == str(tmp_path / "elsewhere")
    assert raised.value.__cause__ is None


def test_the_files_are_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path):
    with Disk() as disk:
        write(tmp_path / "folder", ("a",))
    assert [name for name in disk.done if name in ("write", "fsync", "replace", "rename")] == [
        *("write", "fsync", "replace", "fsync"),  # the file
        *("fsync", "rename", "fsync"),  # the folder
    ]


# ---------------------------------------------------------------- paths


def test_parents_are_created_and_other_files_of_an_existing_folder_are_kept(tmp_path):
    path = tmp_path / "some" / "where"
    write(path)
    write(path, ("c",))
    assert sorted(os.listdir(path)) == ["a", "b", "c"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path / "file"))):
        write(tmp_path / "file")
    assert contents(tmp_path) == {(tmp_path / "file").relative_to(tmp_path): b"old"}


@posix
def test_a_new_folder_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "folder")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "folder").st_mode) == 0o750


@posix
def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write(tmp_path / "link")
    assert sorted(os.listdir(tmp_path / "target")) == ["a", "b"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("convert", [str, os.fsencode, lambda path: path], ids=["str", "bytes", "Path"])
def test_paths_of_any_type(tmp_path, convert):
    write(convert(tmp_path / "folder"))
    assert sorted(os.listdir(tmp_path / "folder")) == ["a", "b"]


@each_failure
def test_copies_of_model_files_are_old_or_new(tmp_path, error):
    base, output = tmp_path / "base", tmp_path / "output"
    base.mkdir()
    output.mkdir()
    (base / "vocab.txt").write_bytes(b"new" * 1000)
    (output / "vocab.txt").write_bytes(b"old" * 900)
    for _ in interrupted(lambda: copy_model_files(base, output), error):
        assert (output / "vocab.txt").read_bytes() in (b"new" * 1000, b"old" * 900)
