"""What is given in place of a trace is named in one line, with what to give instead."""

import gzip
import io
import pickle
import sqlite3
import tarfile
import zipfile

import pytest

from gpuprof.errors import GpuprofError
from gpuprof.traces import chrome
from gpuprof.traces.foreign import kind_of


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def archive(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("trace.json", "[]")
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as packed:
            packed.addfile(tarfile.TarInfo("trace.json"))
    return file.getvalue()


TABLE = b'"ID","Process ID","Process Name","Host Name","Kernel Name"\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b" \n", "is empty"),
        ("a.json.gz", gzip.compress(b""), "is empty"),
        ("a.json.gz", b"\x1f\x8bnothing", "is damaged, as gzip"),
        ("a.nsys-rep", b"\x00\x01\x02", "a report of Nsight Systems"),
        ("a.qdrep", b"\x00\x01\x02", "a report of Nsight Systems"),
        ("a.ncu-rep", b"\x00\x01\x02", "--csv --page raw > ncu.csv"),
        ("a", b"NVR\x00\x10", "a report of Nsight Compute"),
        ("a.txt", b"==PROF== Connected to process 7\n  gemm (32, 1, 1)\n", "'ncu --csv --page raw'"),
        ("snapshot.pickle", pickle.dumps(Bomb()), "a pickle, such as a memory snapshot of torch"),
        ("a.json", pickle.dumps({"segments": []}, protocol=2), "a pickle"),
        ("a.zip", archive("zip"), "an archive: unpack it"),
        ("a.tgz", archive("tar"), "an archive: unpack it"),
        ("a.txt", b"once upon a time", "no JSON, for it begins with b'once upon a time'"),
        ("a.json", b'{"gpuprof": "run", "schema_version": 2}', "a run of gpuprof already: see it with 'gpuprof show "),
        ("a.json", b'{"nodes": [], "schema": "1.1"}', "has no traceEvents"),
        ("a.json", b'{"traceEvents": null}', "traceEvents are no list"),
        ("a.json", b'{"a": 1, 2}', "no JSON, at byte 9 of its text"),
        ("a.csv", TABLE, "a table of Nsight Compute, no trace"),
    ],
)
def test_a_file_that_is_no_trace_is_named(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(GpuprofError) as raised:
        chrome.read(path)

    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_database_of_nsight_systems_is_named(tmp_path):
    path = tmp_path / "a.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("create table CUPTI_ACTIVITY_KIND_KERNEL (start int)")
    database.close()

    with pytest.raises(GpuprofError, match=r"an SQLite database, such as an export of Nsight Systems.*torch.profiler"):
        kind_of(path)


def test_no_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(GpuprofError, match=r"no file .*missing.json: give a trace"):
        kind_of(tmp_path / "missing.json")
    with pytest.raises(GpuprofError, match="is a folder: give the traces in it"):
        kind_of(tmp_path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"traceEvents": []}', "trace"),
        (b"\xef\xbb\xbf [", "trace"),
        (gzip.compress(b"["), "trace"),
        (TABLE, "table"),
        (b"==PROF== Connected\n" + TABLE, "table"),
        (gzip.compress(TABLE), "table"),
    ],
)
def test_kind_is_told_by_content_not_by_name(content, kind, tmp_path):
    path = tmp_path / "a.nsys-rep"
    path.write_bytes(content)

    assert kind_of(path) == kind
