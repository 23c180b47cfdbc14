"""Nsight Compute's table read, and every way in which it fails, with a stand-in on PATH."""

import stat

import pytest

from gpuprof.errors import GpuprofError
from gpuprof.hardware import ncu

RANGES = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
HEADER = f'"ID","Process ID","Kernel Name","Block Size","Grid Size","{RANGES}","dram__bytes_read.sum","sm__ops.sum"'
UNITS = '"","","","","","","byte",""'
ROW = '"0","7","void gemm<128, 64>(float *)","(256, 1, 1)","(32, 4, 1)","""<default domain>:a:none:none""","1,024","{}"'


def lines(*rows):
    return "\n".join(rows) + "\n"


def test_a_row_is_a_launch():
    text = lines("==PROF== Connected", HEADER, UNITS, ROW.format("2,147,483,648"))

    (launch,) = ncu.read_csv(text)

    assert launch.kernel == "void gemm<128, 64>(float *)"
    assert (launch.grid, launch.block) == ("32x4x1", "256x1x1")
    assert ":a:" in launch.ranges
    assert launch.metrics == {"dram__bytes_read.sum": 1024, "sm__ops.sum": 2_147_483_648}


@pytest.mark.parametrize("cell", ["", "n/a", "N/A", "nan", " "])
def test_what_was_not_read_is_missing_and_not_zero(cell):
    (launch,) = ncu.read_csv(lines(HEADER, UNITS, ROW.format(cell)))

    assert launch.metrics["sm__ops.sum"] is None


@pytest.mark.parametrize(
    ("unit", "read"), [("byte", 1024), ("Kbyte", 1_024_000), ("Mbyte", 1_024_000_000), ("Gbyte", 1_024_000_000_000)]
)
def test_units_are_brought_to_bytes(unit, read):
    (launch,) = ncu.read_csv(lines(HEADER, UNITS.replace("byte", unit), ROW.format("1")))

    assert launch.metrics["dram__bytes_read.sum"] == read


def test_a_unit_that_is_not_known_stops():
    with pytest.raises(GpuprofError, match="in 'furlong', which gpuprof does not know"):
        ncu.read_csv(lines(HEADER, UNITS.replace("byte", "furlong"), ROW.format("1")))


@pytest.mark.parametrize("cell", ["2.147.483.648", "1 024", "1.024,5", "12,34", "many"])
def test_numbers_of_another_locale_stop(cell):
    with pytest.raises(GpuprofError, match="set LC_ALL=C"):
        ncu.read_csv(lines(HEADER, UNITS, ROW.format(cell)))


def test_a_table_that_breaks_off_stops():
    whole = lines(HEADER, UNITS, ROW.format("5"))

    with pytest.raises(GpuprofError, match="breaks off"):
        ncu.read_csv(whole[:-12])
    with pytest.raises(GpuprofError, match="breaks off"):
        ncu.read_csv(whole + '"1","7","gemm","(1, 1, 1)"\n')


def test_a_table_of_another_make_stops_and_no_table_is_no_launch():
    with pytest.raises(GpuprofError, match="no column Kernel Name, Grid Size, Block Size"):
        ncu.read_csv('"ID","a"\n"0","1"\n')
    assert ncu.read_csv("==WARNING== No kernels were profiled.\n") == []


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


def profiled(path, limit_s=20.0):
    return ncu.profile(path, ["sm__ops.sum"], ["true"], limit_s)


def test_the_report_is_exported_then_read(stand_in, tmp_path):
    (tmp_path / "table").write_text(lines(HEADER, UNITS, ROW.format("12")))
    path = stand_in(f'echo "$@" > {tmp_path}/asked; : > $out', f'echo "$@" > {tmp_path}/read; cat {tmp_path}/table')

    (launch,) = profiled(path)

    assert launch.metrics["sm__ops.sum"] == 12
    asked = (tmp_path / "asked").read_text()
    for words in ("--clock-control none", "--cache-control none", "--pipeline-boost-state dynamic", "--nvtx",
                  "--profile-from-start off", "--metrics sm__ops.sum"):  # fmt: skip
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

    with pytest.raises(GpuprofError, match=r"killed after 0\.5 s"):
        profiled(path, limit_s=0.5)

    state = (tmp_path / "child").read_text().strip()
    try:
        with open(f"/proc/{state}/stat") as file:
            assert file.read().split()[2] == "Z"
    except OSError:
        pass  # gone


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
    header = HEADER + ',"device__attribute_display_name","launch__thread_count"'
    text = lines(header, UNITS + ',"","thread"', ROW.format("5") + ',"NVIDIA X","12 of them"')

    (launch,) = ncu.read_csv(text)

    assert set(launch.metrics) == {"dram__bytes_read.sum", "sm__ops.sum"}
