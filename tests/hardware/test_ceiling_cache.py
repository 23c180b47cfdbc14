import json

import pytest

from gpuprof.errors import GpuprofError
from gpuprof.hardware import ceiling_cache as cache

GPU = {"type": "cuda", "name": "NVIDIA H200", "uuid": "GPU-1", "driver": "570.1"}
TORCH = {"torch": "2.13.0", "threads": 8}
ENTRY = {"flops_per_s": 7.9e14, "spread": 0.02, "date": "2026-11-23T10:00:00+00:00"}
OTHER = {"flops_per_s": 5.1e13, "spread": 0.01, "date": "2026-11-24T10:00:00+00:00"}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUPROF_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


def test_the_file_is_where_caches_are(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUPROF_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.path() == tmp_path / "xdg" / "gpuprof" / "ceilings.json"

    for unset in ("", "relative/path"):  # the XDG specification: a relative one does not count
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache.path() == tmp_path / "home" / ".cache" / "gpuprof" / "ceilings.json"

    monkeypatch.setenv("GPUPROF_CACHE", str(tmp_path / "own"))
    assert cache.path() == tmp_path / "own" / "ceilings.json"


def test_without_a_home_there_is_nothing_to_read_and_a_line_for_who_writes(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GPUPROF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", homeless)

    assert cache.read("any") == {}
    with pytest.raises(GpuprofError, match="set GPUPROF_CACHE to a folder"):
        cache.store("any", "bfloat16", ENTRY)


def test_a_gpu_is_told_by_uuid_driver_and_torch():
    assert cache.key(GPU, TORCH) == "GPU-1, driver 570.1, torch 2.13.0"
    assert cache.key(GPU | {"driver": None}, TORCH) == "GPU-1, driver unknown, torch 2.13.0"


def test_a_cpu_is_told_by_name_threads_and_torch():
    assert cache.key({"type": "cpu", "name": "AMD EPYC"}, TORCH) == "AMD EPYC, 8 threads, torch 2.13.0"


def test_entries_come_back_each_with_its_own_date_and_only_to_their_device(folder):
    assert cache.read("gpu") == {}
    assert cache.store("gpu", "bfloat16", ENTRY) == folder / "ceilings.json"
    cache.store("gpu", "float32", OTHER)
    cache.store("cpu", "float32", ENTRY)

    assert cache.read("gpu") == {"bfloat16": ENTRY, "float32": OTHER}
    assert cache.read("cpu") == {"float32": ENTRY}
    assert cache.read("another") == {}
    assert [file.name for file in folder.iterdir()] == ["ceilings.json"]  # nothing half-written is left


def test_a_later_measurement_replaces_the_earlier(folder):
    cache.store("gpu", "bfloat16", ENTRY)
    cache.store("gpu", "bfloat16", OTHER)

    assert cache.read("gpu") == {"bfloat16": OTHER}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"gpuprof": "ceilings", "schema_version": 1, "dev',
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"schema_version": 2, "devices": {}}',
        b'{"schema_version": 1, "devices": []}',
        b'{"schema_version": 1, "devices": {"gpu": {"bfloat16": 7}}}',
        b'{"schema_version": 1, "devices": {"gpu": {"bfloat16": {"flops_per_s": "7", "spread": 0, "date": "d"}}}}',
        b'{"schema_version": 1, "devices": {"gpu": {"bfloat16": {"flops_per_s": NaN, "spread": 0, "date": "d"}}}}',
        b'{"schema_version": 1, "devices": {"gpu": {"bfloat16": {"flops_per_s": 0, "spread": 0, "date": "d"}}}}',
        b'{"schema_version": 1, "devices": {"gpu": {"bfloat16": {"flops_per_s": 7, "date": "d"}}}}',
        b'{"schema_version": 1, "devices": {"gpu": {"copy": {"flops_per_s": 7, "spread": 0, "date": "d"}}}}',
    ],
)
def test_a_broken_file_is_one_line_and_overwritten(folder, content):
    folder.mkdir()
    (folder / "ceilings.json").write_bytes(content)

    with pytest.raises(GpuprofError, match=r"^the cached ceilings.json is ignored \(.+\): 'gpuprof ceilings' writes"):
        cache.read("gpu")
    cache.store("gpu", "bfloat16", ENTRY)
    assert cache.read("gpu") == {"bfloat16": ENTRY}


def test_a_file_that_cannot_be_read_is_one_line_without_its_path(folder):
    (folder / "ceilings.json").mkdir(parents=True)

    with pytest.raises(GpuprofError, match=r"^the cached ceilings.json is ignored \(Is a directory\)") as raised:
        cache.read("gpu")
    assert str(folder) not in str(raised.value)


def test_a_folder_that_cannot_be_made_is_one_line(folder):
    folder.write_text("a file")

    with pytest.raises(GpuprofError, match="cannot make the folder"):
        cache.store("gpu", "bfloat16", ENTRY)


def test_of_two_writers_at_once_one_entry_may_be_lost_and_the_file_is_whole(folder, monkeypatch):
    cache.store("gpu", "float32", OTHER)
    seen_before = cache._devices()
    cache.store("gpu", "bfloat16", ENTRY)
    monkeypatch.setattr(cache, "_devices", lambda: seen_before)  # the second writer read before the first wrote
    cache.store("gpu", "tf32", OTHER)

    data = json.loads((folder / "ceilings.json").read_text())
    assert data["devices"] == {"gpu": {"float32": OTHER, "tf32": OTHER}}
