"""The meter's log: what is written is read as a run, and what is not known is not made up."""

import json
from types import SimpleNamespace

import pytest
from trainings import PEAK, about, counted, even, step, training

import gpuprof
from gpuprof.analysis.comparison import fingerprint, launches, workload_key
from gpuprof.analysis.conventions import fitting
from gpuprof.analysis.counted import counted as priced
from gpuprof.analysis.totals import totals
from gpuprof.log import Log, made, name_of
from gpuprof.schema import table

FLOPS = 6000  # of a step with one micro-batch of size 1


def test_steps_that_are_alike_are_the_step_itself(tmp_path):
    path = training(tmp_path / "run", even(100e-9))

    for run in (gpuprof.load(path), gpuprof.load(tmp_path / "run")):
        assert run.metered
        assert run.ops["flops_causal"].tolist() == [2000, 4000]  # both layers together, by class
        assert run.ops["module"].tolist() == ["Linear", "Linear"]
        assert run.ops["calls"].tolist() == [2, 2]
        assert run.tree[["module", "class", "calls"]].values.tolist() == [["", "Net", 1], ["Linear", "Linear", 2]]
        assert run.samples["step"].tolist() == [4, 5, 6, 7, 8, 9, 10]
        assert run.samples["time_s"].tolist() == [100e-9] * 7
        assert set(run.samples["launch"]) == {0}
        assert run.workload["micro_batches"] == ["x 1x8"]
        assert (run.workload["tokens_per_step"], run.workload["batch_size"]) == (32, 4)
        found = totals(run)
        assert (found["flops"], found["step_s"], found["params"]) == (FLOPS, 100e-9, 128)
        assert found["mfu"] == pytest.approx(FLOPS / PEAK / 100e-9)
        assert {name: outcome.status for name, outcome in run.passes.items()} == {
            "count": "done", "time": "done", "trace": "skipped", "memory": "skipped",
        }  # fmt: skip
        assert run.passes["time"].facts["dropped"] == {"warm-up": 3}
        assert run.warnings == []


def test_mfu_of_steps_of_various_shapes_is_their_flops_over_their_time(tmp_path):
    # sizes 1, 2 and 5, of two micro-batches at the last, in times that have no median in common with the mean
    steps = [step(1, 1e-7, (1,)), step(2, 3e-7, (2,)), step(3, 7e-7, (3, 3)), step(4, 1.0, (3,), dropped="counted")]
    training(tmp_path, steps, sizes=(1, 2, 5))

    run = gpuprof.load(tmp_path)

    flops, seconds = FLOPS * (1 + 2 + 2 * 5), 1e-7 + 3e-7 + 7e-7
    (launch,) = launches(run).to_dict("records")
    assert launch["mfu_datasheet"] == pytest.approx(flops / PEAK / seconds)
    assert launch["step_s"] == pytest.approx(seconds / 3)
    assert launch["flops"] == round(flops / 3)
    assert launch["tokens_per_s"] == pytest.approx(3 * 32 / seconds)
    assert totals(run)["mfu"] == pytest.approx(flops / PEAK / seconds)
    assert run.workload["micro_batches"] == ["of other shapes"]
    assert {"causal", "full"} == set(fitting(run))  # a rule by calls would take the mean of calls for calls
    with pytest.raises(gpuprof.GpuprofError, match="torch-counter does not fit Net: it goes by single calls"):
        priced(run, "torch-counter")


def test_what_most_steps_are_names_the_workload(tmp_path):
    steps = [step(number, 1e-7, (2, 2)) for number in range(1, 9)] + [step(9, 1e-7, (1, 2))]
    training(tmp_path, steps, sizes=(1, 2))

    run = gpuprof.load(tmp_path)

    assert run.workload["micro_batches"] == ["2 x x 2x8", "of other shapes"]


def test_one_accumulation_more_is_another_workload(tmp_path):
    training(tmp_path / "once", [step(1, 1e-7, (1,))])
    training(tmp_path / "twice", [step(1, 2e-7, (1, 1))])
    training(tmp_path / "again", [step(1, 3e-7, (1,))])

    once, twice, again = (workload_key(gpuprof.load(tmp_path / name)) for name in ("once", "twice", "again"))

    assert once == again != twice


def test_a_signature_counted_twice_is_the_mean_of_both(tmp_path):
    log = Log(tmp_path)
    log.counted(1, "packed", counted(1))
    log.counted(1, "packed", counted(4))
    log.write(about(), 1, {}, [step(1, 1e-7)])

    assert totals(gpuprof.load(tmp_path))["flops"] == 15000  # (6000 + 24000) / 2


def test_the_optimizer_is_part_of_a_step_and_no_micro_batch(tmp_path):
    log = Log(tmp_path)
    log.counted(1, "x 1x8", counted(1))
    muon = counted(1)
    muon.ops = table("ops", [{**muon.ops.iloc[0].to_dict(), "phase": "optimizer", "module": "(unattributed)"}])
    log.counted(2, "the optimizer's step", muon)
    log.write(about(), 1, {}, [step(1, 1e-7, (1, 1, 2))])

    run = gpuprof.load(tmp_path)

    found = totals(run)
    assert (found["flops"], found["flops_hardware"]) == (2 * FLOPS, 2 * FLOPS + 1000)
    assert run.workload["micro_batches"] == ["2 x x 1x8"]
    assert run.tree["calls"].tolist() == [2, 4]


def test_an_unknown_count_stays_unknown(tmp_path):
    log = Log(tmp_path)
    found = counted(1, lacking=["mylib::op"])
    found.ops.loc[found.ops["module"] == "second", "flops_hardware"] = None
    log.counted(1, "x", found)
    log.write(about(), 1, {"device/mfu": float("nan"), "device/step_s": 1e-7}, [step(1, 1e-7)])

    run = gpuprof.load(tmp_path)

    assert run.ops["flops_hardware"].isna().all()
    assert run.passes["count"].facts["ops_without_rule"] == ["mylib::op"]
    assert json.loads(log.path.read_text().splitlines()[-1])["figures"] == {"device/step_s": 1e-7}


def test_counts_beyond_64_bits_are_exact(tmp_path):
    training(tmp_path, [step(1, 1.0)], sizes=(10**18 + 1,))

    assert gpuprof.load(tmp_path).ops["flops_causal"].tolist() == [2000 * (10**18 + 1), 4000 * (10**18 + 1)]


def test_steps_that_were_not_counted_are_no_part_of_the_figures(tmp_path):
    steps = [step(1, 1e-7), step(2, 9e-7, (7,)), step(3, 9e-7, (None,)), step(4, 3e-7)]
    training(tmp_path, steps)

    run = gpuprof.load(tmp_path)

    assert run.samples["step"].tolist() == [1, 4]
    assert run.passes["time"].facts["uncounted"] == 2


def test_a_training_of_which_nothing_is_counted_has_its_times(tmp_path):
    Log(tmp_path).write(about(), 2, {}, [step(1, 1e-7, (None,)), step(2, 3e-7, (None,))])

    run = gpuprof.load(tmp_path)

    assert not run.done("count")
    assert run.passes["count"].reason == "the meter could not count these steps"
    (launch,) = launches(run).to_dict("records")
    assert launch["step_s"] == pytest.approx(2e-7)
    assert launch["mfu_datasheet"] != launch["mfu_datasheet"]  # not known
    assert launch["tokens_per_s"] == pytest.approx(64 / 4e-7)


def test_tokens_that_are_not_known_of_all_steps_are_left_out(tmp_path):
    training(tmp_path, [step(1, 1e-7), [2, 1e-7, None, [1], None, None, None, ""]])

    assert not {"tokens_per_step", "samples_per_step", "batch_size"} & set(gpuprof.load(tmp_path).workload)


def test_a_resumed_training_is_one_run(tmp_path):
    training(tmp_path, even(100e-9, 10))
    training(tmp_path, even(300e-9, 20, first=11))  # resumed after step 10

    run = gpuprof.load(tmp_path)

    assert len(run.samples) == 7 + 17
    assert run.passes["time"].facts["processes"] == 2
    assert run.passes["time"].facts["dropped"] == {"warm-up": 6}
    assert totals(run)["step_s"] == pytest.approx((7 * 100e-9 + 17 * 300e-9) / 24)
    assert run.warnings == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"device": {"name": "Other GPU"}}, "device (Toy GPU against Other GPU)"),
        ({"device": {"uuid": "GPU-2"}}, "uuid (GPU-1 against GPU-2)"),
        ({"workload": {"name": "Other"}}, "name (Net against Other)"),
        ({"environment": {"torch": "2.14.0"}}, "torch (2.13.0 against 2.14.0)"),
        ({"settings": {"convention": "full"}}, "convention (causal against full)"),
        ({"params": 256}, "model (Net of 128 parameters against Net of 256 parameters)"),
    ],
)
def test_a_training_that_goes_on_elsewhere_is_the_part_there(tmp_path, other, said):
    training(tmp_path, even(100e-9, 10))
    training(tmp_path, even(300e-9, 20, first=11), **other)

    run = gpuprof.load(tmp_path)

    assert len(run.samples) == 17
    assert run.warnings == [
        f"the training was resumed after step 10 with another {said}: 10 steps before that are left out of all figures"
    ]
    assert fingerprint(run)["device"] == other.get("device", {}).get("name", "Toy GPU")


def test_what_was_trained_again_from_a_checkpoint_counts_once_as_the_later(tmp_path):
    training(tmp_path, even(100e-9, 10))
    training(tmp_path, even(300e-9, 6, first=7))  # resumed after step 6, which undid 7 to 10

    run = gpuprof.load(tmp_path)

    assert run.samples["step"].tolist() == [4, 5, 6, 10, 11, 12]
    assert totals(run)["step_s"] == pytest.approx((3 * 100e-9 + 3 * 300e-9) / 6)


def test_of_two_trainings_at_once_in_one_folder_the_newer_one_has_the_log(tmp_path):
    first, second = Log(tmp_path), Log(tmp_path)
    for log, size in ((first, 1), (second, 4)):
        log.counted(1, f"x {size}x8", counted(size))
        log.write(about(), 1, {}, [step(1, 1e-7)])

    with pytest.raises(gpuprof.GpuprofError, match=r"another process has changed the meter's log .*: give") as told:
        first.write(about(), 2, {}, [step(2, 1e-7)])
    second.write(about(), 2, {}, [step(2, 1e-7)])

    assert "\n" not in str(told.value)
    run = gpuprof.load(tmp_path)
    assert run.samples["step"].tolist() == [1, 2]
    assert totals(run)["flops"] == 4 * FLOPS


def test_a_peak_that_is_measured_anew_is_no_other_place(tmp_path):
    measured = {"type": "cpu", "name": "CPU", "peaks": {"measured": {"bfloat16": 1e9}}}
    training(tmp_path, even(1.0, 10), device=measured)
    training(tmp_path, even(1.0, 20, first=11), device=measured | {"peaks": {"measured": {"bfloat16": 2e9}}})

    assert len(gpuprof.load(tmp_path).samples) == 24


def test_another_training_in_the_same_folder_is_not_mixed_with_the_first(tmp_path):
    training(tmp_path, even(100e-9, 10))
    training(tmp_path, even(300e-9, 20))

    run = gpuprof.load(tmp_path)

    assert len(run.samples) == 17
    assert run.warnings == ["the training began anew in this folder: 10 steps before that are left out of all figures"]


def test_a_process_that_was_killed_at_once_leaves_the_training_as_it_was(tmp_path):
    training(tmp_path, even(100e-9, 10))
    Log(tmp_path, before=10).write(about(), 10, {}, [])

    assert len(gpuprof.load(tmp_path).samples) == 7


def test_a_torn_last_line_is_passed_over_and_cut_by_who_writes_on(tmp_path):
    path = training(tmp_path, even(100e-9, 30), reads=3)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1

    for torn in (whole[: last + 40], whole[:-1]):
        path.write_bytes(torn)
        assert len(gpuprof.load(tmp_path).samples) == 17
    training(tmp_path, even(100e-9, 10, first=21))

    assert path.read_bytes().startswith(whole[:last] + b'{"gpuprof": "meter log"')
    assert len(gpuprof.load(tmp_path).samples) == 17 + 7


def test_a_torn_header_is_cut_too(tmp_path):
    path = tmp_path / name_of(0)
    path.write_bytes(b'{"gpuprof": "me')

    training(tmp_path, even(100e-9, 10))

    assert len(gpuprof.load(tmp_path).samples) == 7


def test_every_cut_of_a_log_is_read_or_is_one_line(tmp_path):
    path = training(tmp_path, even(100e-9, 6), reads=3)
    whole = path.read_bytes()
    of_lines = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    first = of_lines[3]  # header, signature, steps 1 and 2, steps 3 and 4

    for size in [*range(0, len(whole), 97), *of_lines]:
        path.write_bytes(whole[:size])
        if size < first:
            with pytest.raises(gpuprof.GpuprofError, match=r"empty|foreign|no step yet|broken") as caught:
                gpuprof.load(path)
            assert "\n" not in str(caught.value)
        else:
            assert len(gpuprof.load(path).samples) == (3 if size == len(whole) else 1)


def test_a_log_is_written_before_anything_is_counted_only_in_mind(tmp_path):
    log = Log(tmp_path)
    log.write({}, 1, {}, [step(1, 1e-7, (None,), dropped="warm-up")])
    assert log.path.read_bytes() == b""

    log.counted(1, "x 1x8", counted(1))
    log.write(about(), 2, {}, [step(2, 1e-7)])

    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [sorted(line) for line in lines[1:]] == [
        ["calls", "causality", "facts", "inputs", "ops", "root", "signature"], ["date", "figures", "step", "steps"],
    ]  # fmt: skip
    assert (lines[0]["schema_version"], lines[0]["steps_before"]) == (1, 0)
    assert [one[0] for one in lines[-1]["steps"]] == [1, 2]


def test_lines_are_bounded(tmp_path):
    path = training(tmp_path, even(100e-9, 100_000))

    lines = path.read_bytes().splitlines()

    assert len(lines) == 2 + 100
    assert max(map(len, lines)) < 80_000
    assert path.stat().st_size < 6_000_000  # 60 bytes a step
    assert len(gpuprof.load(path).samples) == 99_997


BROKEN = {
    "is empty: its meter has not been read yet": lambda lines: [],
    "no step yet whose time counts": lambda lines: lines[:2],
    "schema version 2, this gpuprof reads up to 1: upgrade gpuprof": lambda lines: [
        lines[0].replace('"schema_version": 1', '"schema_version": 2'), *lines[1:],
    ],
    "line 2 of .* is broken: remove it": lambda lines: [lines[0], lines[1][:50], *lines[2:]],
    "line 3 of .* is broken: remove it": lambda lines: [*lines[:2], "[1, 2]"],
    r"a part missing or broken \(line 1\)": lambda lines: [lines[0].replace('"workload"', '"load"'), *lines[1:]],
    "is a gpuprof run with a part missing or broken": lambda lines: [
        *lines[:2], lines[2].replace("1e-07", "-1.0"),
    ],
    r"a part missing or broken \(line 3\)": lambda lines: [*lines[:2], lines[2].replace('"step": 1', '"step": null')],
    r"a part missing or broken \(": lambda lines: [*lines[:2], lines[2].replace("1e-07", '"long"')],
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_log_is_one_line(tmp_path, message):
    path = training(tmp_path, [step(1, 1e-7)])
    path.write_text("".join(f"{line}\n" for line in BROKEN[message](path.read_text().splitlines())))

    with pytest.raises(gpuprof.GpuprofError, match=message) as caught:
        gpuprof.load(tmp_path)

    assert "\n" not in str(caught.value)


def test_a_folder_without_a_log_is_one_line(tmp_path):
    with pytest.raises(gpuprof.GpuprofError, match=r"is a folder without a meter\.jsonl: give"):
        gpuprof.load(tmp_path)


def test_a_file_that_is_something_else_is_neither_read_nor_written_to(tmp_path):
    path = tmp_path / name_of(0)
    path.write_text('{"a": 1}\n{"b": 2}\n')

    with pytest.raises(gpuprof.GpuprofError, match="truncated or foreign"):
        gpuprof.load(path)
    with pytest.raises(gpuprof.GpuprofError, match=r"is not the log of a gpuprof\.Meter: give it another folder"):
        Log(tmp_path)
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(gpuprof.GpuprofError, match=r"cannot make the folder .*file.run for the meter's log"):
        made(tmp_path / "file" / "run")
    with pytest.raises(gpuprof.GpuprofError, match=r"cannot write the meter's log .*file.*meter\.jsonl"):
        Log(tmp_path / "file")


def test_each_rank_has_a_log_of_its_own(tmp_path):
    training(tmp_path, even(100e-9))
    path = training(tmp_path, even(300e-9), rank=3, workload={"rank": 3, "world": 4})

    assert path.name == "meter-rank-3.jsonl"
    assert totals(gpuprof.load(tmp_path))["step_s"] == pytest.approx(100e-9)  # of the first
    assert gpuprof.load(path).of_job == "rank 3 of 4"


def test_attention_whose_mask_is_not_known_of_one_module_is_so_of_its_class(tmp_path):
    found = counted(1)
    found.tree["causality"] = ["", "unknown", "known"]
    log = Log(tmp_path)
    log.counted(1, "x", SimpleNamespace(**vars(found)))
    log.write(about(), 1, {}, [step(1, 1e-7)])

    assert gpuprof.load(tmp_path).tree["causality"].tolist() == ["", "unknown"]


def test_a_saved_run_of_a_log_is_that_run(tmp_path):
    run = gpuprof.load(training(tmp_path, even(100e-9)))

    again = gpuprof.load(run.save(tmp_path / "run.json"))

    assert again.metered
    assert again.to_dict() == run.to_dict()
    assert totals(again) == totals(run)
