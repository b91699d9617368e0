"""Files appear whole or not at all, whatever ends the process, and keep their permissions and links."""

import errno
import os
import re
import stat

import numpy as np
import pytest

from lora_np import ArgumentError, DenseLayer, DyLoRAAdapter, _archive, load_layer, save_layer
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.fuzz.disk import Disk, interrupted

FULL = (errno.ENOSPC, os.strerror(errno.ENOSPC))
posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")


def write(path, data=b"new"):
    with _archive.atomic_file(path) as file:
        file.write(data)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def umask():
    """The usual umask, whatever the user's."""
    before = os.umask(0o022)
    yield
    os.umask(before)


# ---------------------------------------------------------------- killed at every operation


def of_bytes(path, old):
    write(path, b"old" * 5_000 if old else b"new" * 7_000)


def of_layer(path, old):
    layer = DyLoRAAdapter(DenseLayer(40, 30, rng=int(old)), 4, [1, 4], rng=int(old))
    layer.current_deployment_rank = 1 if old else 4
    save_layer(layer, path)


def of_tensors(path, old):
    save_safetensors(path, {"a": np.full(3_000, float(old)), "b": np.full(7, 1, np.uint8)}, {"which": str(old)})


WRITERS = {"bytes": of_bytes, "a layer": of_layer, "tensors": of_tensors}


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("error", [None, FULL], ids=["killed", "disk full"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_after_a_failure_at_any_operation_the_file_is_the_old_one_or_the_new_one(tmp_path, writer, error, exists):
    path, new = tmp_path / "file", tmp_path / "new"
    writer(new, False)
    contents = {new.read_bytes()}
    if exists:
        writer(path, True)
        contents.add(path.read_bytes())
    attempts = 0
    for completed in interrupted(lambda: writer(path, False), error):
        attempts += 1
        assert path.exists() or not exists
        assert not path.exists() or path.read_bytes() in contents
        if completed:
            assert path.read_bytes() == new.read_bytes()
        elif exists:
            writer(path, True)
        else:
            path.unlink(missing_ok=True)
    assert attempts > 4


def test_a_full_disk_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    with Disk() as disk:
        write(path, b"old")
    for at, name in enumerate(disk.done):
        if name != "remove":
            with Disk(at, OSError(*FULL)), pytest.raises(OSError, match=FULL[1]):
                write(path)
            assert os.listdir(tmp_path) == ["file"], name


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path):
    with Disk() as disk:
        write(tmp_path / "file")
    assert [name for name in disk.done if name in ("write", "fsync", "replace")] == ["write", "fsync", "replace", "fsync"]


@pytest.mark.parametrize("writer", [of_layer, of_tensors], ids=["a layer", "tensors"])
def test_interrupted_files_that_exist_can_be_read(tmp_path, writer):
    path = tmp_path / "file"
    for _ in interrupted(lambda: writer(path, False)):
        if path.exists():
            load_layer(path) if writer is of_layer else load_safetensors(path)


# ---------------------------------------------------------------- permissions and links


@posix
@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o644, 0o666, 0o755])
def test_an_existing_file_keeps_its_permissions(tmp_path, permissions, umask):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(permissions)
    write(path)
    assert (path.read_bytes(), mode(path)) == (b"new", permissions)


@posix
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path, umask):
    write(tmp_path / "file")
    assert mode(tmp_path / "file") == 0o644


@posix
def test_nobody_else_can_read_the_temporary_file_of_a_private_one(tmp_path, umask):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with _archive.atomic_file(path) as file:
        file.write(b"new")
        assert {mode(each) for each in tmp_path.iterdir()} == {0o600}


@posix
@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_is_followed(tmp_path, dangling, relative):
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "target", tmp_path / "link"
    if not dangling:
        target.write_bytes(b"old")
    link.symlink_to("data/target" if relative else target)
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["data", "link"]
    assert os.listdir(tmp_path / "data") == ["target"]


@posix
def test_a_planted_link_under_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    monkeypatch.setattr(os, "urandom", bytes)  # the name can be guessed
    (tmp_path / f".{bytes(8).hex()}.tmp").symlink_to(victim)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
        write(tmp_path / "file")
    assert victim.read_bytes() == b"untouched"


def test_temporary_names_differ_in_processes_with_equal_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with _archive.atomic_file(tmp_path / "file"), _archive.atomic_file(tmp_path / "file"):
        assert len(os.listdir(tmp_path)) == 2


# ---------------------------------------------------------------- paths that cannot be written


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        write(tmp_path)
    assert os.listdir(tmp_path) == []


@posix
def test_a_device_is_refused():
    with pytest.raises(ArgumentError, match="path must name a file, got '/dev/null'"):
        write("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_the_error_about_a_missing_folder_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write(tmp_path / "none" / "file")
    assert raised.value.filename == str(tmp_path / "none" / "file")


@pytest.mark.parametrize("convert", [str, os.fsencode, lambda path: path], ids=["str", "bytes", "Path"])
def test_paths_of_any_type(tmp_path, convert):
    write(convert(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"new"


def test_long_names(tmp_path):
    write(tmp_path / ("n" * 255))
    assert os.listdir(tmp_path) == ["n" * 255]


def test_what_cannot_be_written_is_known_in_advance(tmp_path):
    _archive.check_writable(tmp_path / "new")
    assert os.listdir(tmp_path) == []
    with pytest.raises(IsADirectoryError):
        _archive.check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        _archive.check_writable(tmp_path / "none" / "file")
