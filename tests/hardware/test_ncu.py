"""Nsight Compute's table read, and every way in which it fails, with a stand-in on PATH."""

import csv
import io
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpuprof
from gpuprof.errors import GpuprofError
from gpuprof.hardware import ncu

RANGES = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
HEADER = f'"ID","Process ID","Kernel Name","Block Size","Grid Size","{RANGES}","dram__bytes_read.sum","sm__ops.sum"'
UNITS = '"","","","","","","byte",""'
ROW = '"0","7","void gemm<128, 64>(float *)","(256, 1, 1)","(32, 4, 1)","""<default domain>:a:none:none""","1,024","{}"'


METRICS = ("dram__bytes_read.sum", "sm__ops.sum")


def lines(*rows):
    return "\n".join(rows) + "\n"


def read(text):
    return ncu.read_csv(text, METRICS)


def test_a_row_is_a_launch():
    text = lines("==PROF== Connected", HEADER, UNITS, ROW.format("2,147,483,648"))

    (launch,) = read(text)

    assert launch.kernel == "void gemm<128, 64>(float *)"
    assert (launch.grid, launch.block) == ("32x4x1", "256x1x1")
    assert ":a:" in launch.ranges
    assert launch.metrics == {"dram__bytes_read.sum": 1024, "sm__ops.sum": 2_147_483_648}


@pytest.mark.parametrize("cell", ["", "n/a", "N/A", "nan", " "])
def test_what_was_not_read_is_missing_and_not_zero(cell):
    (launch,) = read(lines(HEADER, UNITS, ROW.format(cell)))

    assert launch.metrics["sm__ops.sum"] is None


@pytest.mark.parametrize(
    ("unit", "value"), [("byte", 1024), ("Kbyte", 1_024_000), ("Mbyte", 1_024_000_000), ("Gbyte", 1_024_000_000_000)]
)
def test_units_are_brought_to_bytes(unit, value):
    (launch,) = read(lines(HEADER, UNITS.replace("byte", unit), ROW.format("1")))

    assert launch.metrics["dram__bytes_read.sum"] == value


def test_a_unit_that_is_not_known_stops():
    with pytest.raises(GpuprofError, match="in 'furlong', which gpuprof does not know"):
        read(lines(HEADER, UNITS.replace("byte", "furlong"), ROW.format("1")))


@pytest.mark.parametrize("cell", ["2.147.483.648", "1 024", "1.024,5", "12,34", "many"])
def test_numbers_of_another_locale_stop(cell):
    with pytest.raises(GpuprofError, match="set LC_ALL=C"):
        read(lines(HEADER, UNITS, ROW.format(cell)))


def test_a_table_that_breaks_off_stops():
    whole = lines(HEADER, UNITS, ROW.format("5"))

    with pytest.raises(GpuprofError, match="breaks off"):
        read(whole[:-12])
    with pytest.raises(GpuprofError, match="breaks off"):
        read(whole + '"1","7","gemm","(1, 1, 1)"\n')


def test_a_table_of_another_make_stops_and_no_table_is_no_launch():
    with pytest.raises(GpuprofError, match="no column Kernel Name, Grid Size, Block Size"):
        read('"ID","a"\n"0","1"\n')
    assert read("==WARNING== No kernels were profiled.\n") == []


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a shell script on PATH as ncu; what it does when asked to profile is given."""

    def install(profiling, importing="true"):
        script = tmp_path / "bin" / "ncu"
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            "#!/bin/sh\n"
            'for a in "$@"; do case $last in --export) out=$a;; --import) in=$a;; esac; last=$a; done\n'
            'case "$*" in\n'
            '--version) echo "Version 2025.3.1.0 (build 1)";;\n'
            '--help) echo "  --pipeline-boost-state";;\n'
            f"--import\\ *) {importing};;\n"
            f"*) {profiling};;\n"
            "esac\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
        return str(script)

    return install


def profiled(path, limit_s=120.0):
    return ncu.profile(path, ["sm__ops.sum"], ["true"], limit_s)


def test_the_report_is_exported_then_read(stand_in, tmp_path):
    (tmp_path / "table").write_text(lines(HEADER, UNITS, ROW.format("12")))
    path = stand_in(f'echo "$@" > {tmp_path}/asked; : > $out', f'echo "$@" > {tmp_path}/read; cat {tmp_path}/table')

    (launch,) = profiled(path)

    assert launch.metrics["sm__ops.sum"] == 12
    asked = (tmp_path / "asked").read_text()
    for words in ("--clock-control none", "--cache-control none", "--pipeline-boost-state dynamic", "--nvtx",
                  "--profile-from-start off", "--import-sass no", "--metrics sm__ops.sum"):  # fmt: skip
        assert words in asked
    assert "--print-units base" in (tmp_path / "read").read_text()


def test_no_permission_is_no_failure_and_says_what_to_do(stand_in):
    path = stand_in('echo "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"; exit 1')

    with pytest.raises(ncu.UnavailableError) as caught:
        profiled(path)

    assert "administrators" in str(caught.value)
    assert "NVreg_RestrictProfilingToAdminUsers=0" in caught.value.remedy


@pytest.mark.parametrize(
    ("profiling", "importing", "reason"),
    [
        ("true", "true", "wrote no report"),
        (': > $out; echo "==WARNING== No kernels were profiled."', "true", "counted no kernel"),
        ('echo "==ERROR== Failed to prepare kernel" >&2; exit 9', "true", "exit code 9: ==ERROR== Failed to prepare"),
        ('echo "gpuprof: no model called that" >&2; exit 2', "true", "exit code 2: gpuprof: no model called that"),
        (": > $out", 'echo "==ERROR== not a report"; exit 1', "not a report"),
    ],
)
def test_a_run_that_goes_wrong_says_how(stand_in, profiling, importing, reason):
    with pytest.raises(GpuprofError, match=reason):
        profiled(stand_in(profiling, importing))


def test_time_up_kills_everything_that_was_started(stand_in, tmp_path):
    path = stand_in(f"sleep 600 & echo $! > {tmp_path}/child; wait")

    with pytest.raises(GpuprofError, match="killed after 2 s"):
        profiled(path, limit_s=2.0)

    wait_until_gone((tmp_path / "child").read_text())


def alive(pid):
    """Whether a process runs: it is not gone, and no zombie."""
    try:
        return Path(f"/proc/{pid.strip()}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid):
    """What is killed runs until the system takes it off its core, which may be after its parent has ended."""
    end = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.02)


def test_sigterm_ends_ncu_and_its_application_too(stand_in, tmp_path):
    path = stand_in(f"sleep 600 & echo $! > {tmp_path}/child; wait")
    code = (
        "from gpuprof.signals import exit_on_sigterm\nfrom gpuprof.hardware import ncu\n"
        f"exit_on_sigterm(); ncu.profile({path!r}, ['sm__ops.sum'], ['true'], 600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path(gpuprof.__file__).parent.parent)}
    )
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().strip():
        assert parent.poll() is None
        time.sleep(0.02)

    parent.terminate()

    assert parent.wait(120) == 143
    wait_until_gone((tmp_path / "child").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ncu_starts_ends_it_too(stand_in, monkeypatch, number):
    started, start = [], subprocess.Popen

    def interrupted(command, **how):
        started.append(start(command, **how))
        if "--export" in command:
            os.kill(os.getpid(), number)
            assert started[-1].poll() is None
        return started[-1]

    def told(*_):
        raise SystemExit(128 + number)

    path = stand_in("exec sleep 600")
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(number, told)
    try:
        with pytest.raises(SystemExit) as end:
            profiled(path)
        assert signal.getsignal(number) is told
    finally:
        signal.signal(number, before)

    assert end.value.code == 128 + number
    assert started[-1].returncode == -signal.SIGKILL


def test_no_ncu(monkeypatch):
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ncu.UnavailableError, match="no ncu on PATH"):
        ncu.find()


def test_an_ncu_that_lists_no_metrics_leaves_what_is_known_of_the_chip(stand_in):
    path = stand_in("exit 3")

    assert "sm__ops_path_tensor_src_fp8.sum" in ncu.metrics_of(path, "9.0")
    assert ncu.metrics_of(path, "7.5") == frozenset()


def test_the_listed_metrics_are_what_counts(stand_in):
    path = stand_in("echo 'Metric Name  Type'; echo 'dram__bytes_op_read  Counter  byte  # of bytes'")

    assert ncu.metrics_of(path, "9.0") == {"dram__bytes_op_read"}


def test_columns_that_nobody_asked_for_may_hold_anything():
    header = HEADER + ',"device__attribute_display_name","launch__thread_count","sm__note","dram__note"'
    text = lines(header, UNITS + ',"","thread","furlong","Ghz"', ROW.format("5") + ',"NVIDIA X","12 of them","?","!"')

    (launch,) = read(text)

    assert launch.metrics == {"dram__bytes_read.sum": 1024, "sm__ops.sum": 5}


# What --page raw --csv --print-units base prints beside two metrics that were asked for: column, unit, two kernels.
NVTX = '0  "<default domain>:gpuprof|op|3|1:none:none:none:none:none:none"  '
RAW = [
    ("ID", "", "0", "1"),
    ("Process ID", "", "4711", "4711"),
    ("Process Name", "", "python3.12", "python3.12"),
    ("Host Name", "", "127.0.0.1", "127.0.0.1"),
    (RANGES, "", NVTX, ""),
    ("Id:Domain:Start/Stop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg", "", "", ""),
    ("Kernel Name", "", "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", 'void k<float, (int)4>(T1 *, "x")'),
    ("Context", "", "1", "1"),
    ("Stream", "", "7", "7"),
    ("Block Size", "", "(384, 1, 1)", "(128, 1, 1)"),
    ("Grid Size", "", "(2, 66, 1)", "(1024, 1, 1)"),
    ("Device", "", "0", "0"),
    ("CC", "", "9.0", "9.0"),
    ("device__attribute_display_name", "", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
    ("device__attribute_max_gpu_frequency_khz", "khz", "1,980,000", "1,980,000"),
    ("dram__bytes_read.sum", "byte", "134,217,728", "0"),
    ("gpc__cycles_elapsed.max", "cycle", "203,117", "2,411"),
    ("gpu__time_duration.sum", "ns", "114,208", "n/a"),
    ("launch__block_size", "", "384", "128"),
    ("launch__registers_per_thread", "register/thread", "168", "18"),
    ("launch__thread_count", "thread", "50,688", "131,072"),
    ("launch__waves_per_multiprocessor", "", "1", "0.48"),
    ("lts__t_sectors_op_read.sum", "sector", "9,437,184", "12"),
    ("profiler__replayer_bytes_mem_backed_up.sum", "byte", "0", "0"),
    ("profiler__replayer_passes", "pass", "3", "1"),
    ("profiler__replayer_passes_type_warmup", "pass", "0", "0"),
    ("sm__cycles_elapsed.avg.per_second", "hz", "1,755,000,000", "nan"),
    ("sm__maximum_warps_avg_per_active_cycle", "warp", "12", "64"),
    ("sm__maximum_warps_per_active_cycle_pct", "%", "18.75", "100"),
    ("sm__ops_path_tensor_src_bf16_dst_fp32.sum", "", "137,438,953,472", "0"),
]


def test_a_whole_raw_table_is_read_for_what_was_asked_and_the_replays():
    table = io.StringIO()
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows(zip(*RAW, strict=True))
    asked = ["sm__ops_path_tensor_src_bf16_dst_fp32.sum", "dram__bytes_read.sum", "gpu__time_duration.sum"]

    matmul, vector = ncu.read_csv("==PROF== Connected to process 4711\n" + table.getvalue(), asked)

    assert (matmul.kernel, matmul.grid, matmul.block) == (RAW[6][2], "2x66x1", "384x1x1")
    assert matmul.ranges.split() == ["0", '"<default', 'domain>:gpuprof|op|3|1:none:none:none:none:none:none"']
    assert matmul.metrics == {
        "dram__bytes_read.sum": 134_217_728,
        "gpu__time_duration.sum": 114_208,
        "profiler__replayer_passes": 3,
        "sm__ops_path_tensor_src_bf16_dst_fp32.sum": 2 * 4096**3,
    }
    assert (vector.kernel, vector.grid, vector.ranges.strip()) == (RAW[6][3], "1024x1x1", "")
    assert vector.metrics == {
        "dram__bytes_read.sum": 0,
        "gpu__time_duration.sum": None,
        "profiler__replayer_passes": 1,
        "sm__ops_path_tensor_src_bf16_dst_fp32.sum": 0,
    }


def test_a_table_with_a_row_per_metric_is_refused_with_what_to_do():
    text = lines(
        '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",'
        '"Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"',
        '"0","1","python3","127.0.0.1","k","1","7","(1, 1, 1)","(1, 1, 1)","0","9.0","Command line profiler metrics",'
        '"dram__bytes_read.sum","byte","1,024"',
    )

    with pytest.raises(GpuprofError) as caught:
        read(text)

    assert str(caught.value) == (
        "Nsight Compute's table has a row per metric, not one per kernel: print it with "
        "'ncu --import REPORT.ncu-rep --csv --page raw'"
    )
