"""The meter's figures where the frameworks' own logging puts them: TensorBoard, W&B and MLflow, without any server."""

import csv
import math
import struct
import time

import lightning.pytorch.loggers
import mlflow
import pytest
import wandb
from meter.small_llama import Rows, llama, train_flops
from meter.test_lightning import fit, module
from meter.test_lightning import trainer as lightning_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainingArguments
from wandb.proto.wandb_internal_pb2 import Record

from gpuprof.integrations import GpuprofCallback, LightningMeter

ROWS = 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where all of them write, and what keeps them from asking for a server."""
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true",
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "events"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    while mlflow.active_run() is not None:
        mlflow.end_run()
    wandb.finish()


def of_tensorboard(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def records(data):
    """Of a file of W&B, which is a log as LevelDB writes it: blocks of 32 KiB, and no piece goes over two of them."""
    place, whole = 7, b""  # after the file's own header
    while place + 7 < len(data):
        if (1 << 15) - place % (1 << 15) < 7:
            place += (1 << 15) - place % (1 << 15)
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)  # after the checksum
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if place > len(data):  # it is being written
            return
        if kind in (1, 4):  # all of a record, or the last of it
            yield Record.FromString(whole)
            whole = b""


def of_wandb(folder):
    """The history in the one file of a run that was never sent, by name and the step that the framework gave it."""
    wandb.finish()
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    written, deadline = [], time.monotonic() + 120
    while not written or written[-1].WhichOneof("record_type") != "exit":  # which a process of its own writes
        assert time.monotonic() < deadline
        written = list(records(path.read_bytes()))
    found = {}
    for record in written:
        line = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        step = line.get("train/global_step", line.get("trainer/global_step"))
        for name, value in line.items():
            if "/" in name:
                found.setdefault(name, {})[int(step)] = float(value)
    return found


def of_mlflow():
    client = mlflow.MlflowClient()
    (run,) = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
    return {
        name: {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }


@pytest.mark.parametrize("to", ["tensorboard", "wandb", "mlflow"])
def test_what_a_trainer_of_hugging_face_reports(folder, to):
    arguments = TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=ROWS, max_steps=8, logging_steps=2, use_cpu=True,
        disable_tqdm=True, save_strategy="no", report_to=to,
    )  # fmt: skip
    trained = Trainer(llama(), arguments, train_dataset=Rows(100), callbacks=[GpuprofCallback()])
    trained.train()

    found = {"tensorboard": lambda: of_tensorboard(folder / "events"), "wandb": lambda: of_wandb(folder)}.get(
        to, of_mlflow
    )()
    prefix = "" if to == "mlflow" else "train/"  # which Hugging Face puts before all that is no evaluation
    read = {line["step"]: line for line in trained.state.log_history if "meter/step" in line}
    names = [name for name in read[8] if "device/" in name or "meter/" in name]
    assert {"device/mfu", "device/tokens_per_sec", "meter/flops_per_step"} <= set(names)
    for name in names:
        of_steps = {step: line[name] for step, line in read.items() if name in line}
        # TensorBoard keeps single precision
        assert found[prefix + name] == pytest.approx(of_steps, rel=1e-6 if to == "tensorboard" else 1e-12)
    assert read[8]["meter/flops_per_step"] == train_flops(ROWS)
    assert all(math.isfinite(read[8][name]) for name in names)


@pytest.mark.parametrize("to", ["tensorboard", "wandb", "mlflow", "csv"])
def test_what_a_trainer_of_lightning_logs(folder, to):
    loggers = lightning.pytorch.loggers
    logger = {
        "tensorboard": lambda: loggers.TensorBoardLogger(folder, name="events"),
        "wandb": lambda: loggers.WandbLogger(save_dir=folder, offline=True),
        "mlflow": lambda: loggers.MLFlowLogger(tracking_uri=(folder / "mlruns").as_uri()),
        "csv": lambda: loggers.CSVLogger(folder, name="lines"),
    }[to]()
    trained = lightning_trainer(folder, [LightningMeter()], max_steps=8, log_every_n_steps=2, logger=logger)
    fit(trained, module())

    last = {name: float(value) for name, value in trained.logged_metrics.items() if "/" in name}
    assert {"device/mfu", "device/tokens_per_sec", "meter/flops_per_step"} <= last.keys()
    if to == "csv":
        with open(folder / "lines" / "version_0" / "metrics.csv") as file:
            lines = [line for line in csv.DictReader(file) if line["device/mfu"]]
        found = {name: {int(line["step"]): float(line[name]) for line in lines} for name in last}
    elif to == "tensorboard":
        found = of_tensorboard(folder / "events" / "version_0")
    else:
        found = of_wandb(folder) if to == "wandb" else of_mlflow()
    for name, value in last.items():
        assert found[name][7] == pytest.approx(value, rel=1e-6 if to == "tensorboard" else 1e-12)
    assert last["meter/flops_per_step"] == train_flops(ROWS)
    assert sorted(found["device/mfu"]) == [3, 5, 7]  # of steps counted from 0, as Lightning's loggers have them
