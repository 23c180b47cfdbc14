"""What is written takes the place of a file, and of nothing else."""

import os
import stat
import threading

import pytest

from gpuprof.errors import GpuprofError
from gpuprof.files import write_atomically


def test_a_device_stays_one():
    write_atomically("/dev/null", "text")

    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_pipe_is_written_to(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_atomically(pipe, "text")
    reader.join(10)

    assert read == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "runs").mkdir()
    file, link = tmp_path / "runs" / "today.json", tmp_path / "latest.json"
    file.write_text("old")
    link.symlink_to(file)
    write_atomically(link, "new")

    assert link.is_symlink()
    assert file.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["latest.json", "runs", "today.json"]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(GpuprofError, match="cannot write"):
        write_atomically(tmp_path / "absent" / "run.json", "text")
    assert list(tmp_path.iterdir()) == []
