"""What a file is that is given to be imported, and what to give instead where it cannot be read.

Nothing is unpickled and no database is opened: a file is told by its first bytes, then by its name.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from gpuprof.errors import GpuprofError

_RECORD = "record the step with torch.profiler and save it by export_chrome_trace('trace.json')"
_SYSTEMS = (
    "of Nsight Systems, which knows no operators of torch and exports nothing that is read: "
    + _RECORD
    + ", or measure "
    "single kernels with Nsight Compute (ncu --csv --page raw), whose table is read"
)
_REPORT = (
    "a report of Nsight Compute: print its table, which is read, with 'ncu --import {path} --csv --page raw > ncu.csv'"
)
_PICKLE = "a pickle, such as a memory snapshot of torch, and none is ever loaded, since it may run any code: " + _RECORD

_HEAD = 1 << 16  # bytes that tell what a file is
_TABLE = re.compile(rb'^"?ID"?,.*(Kernel Name|Process ID|Host Name)', re.MULTILINE)
_DEVICES = {"xpu": "an Intel GPU", "mtia": "MTIA", "hpu": "Gaudi", "privateuse1": "a device of a plug-in of torch"}


def kind_of(path: Path) -> Literal["trace", "table"]:
    """What a file is: JSON, plain or in gzip, as a trace is, or a table of Nsight Compute.

    Raises:
        GpuprofError: it cannot be read, or is something else: what, and what to give instead.
    """
    head = _head(path)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text[:1] in (b"{", b"["):
        return "trace"
    if _TABLE.search(text):
        return "table"
    raise GpuprofError(f"{path} is {_foreign(path, head)}")


def no_trace(path: Path, text: bytes, end: str | None) -> GpuprofError:
    """What is wrong with a text that begins as JSON does and has no list of events.

    Args:
        path: the file.
        text: all of it, or its beginning.
        end: None where that is the beginning; else what is damaged at the end of the file, mostly nothing.
    """
    fields = None
    try:
        fields = json.loads(text.decode("latin-1"), strict=False)  # a letter for each byte
    except json.JSONDecodeError as error:
        cut = end or error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())
        if cut and end is not None:
            what = "damaged" if end.endswith("damaged") else "cut short"
            return GpuprofError(
                f"{path} is {what} before its first event, at byte {len(text)} of its text{end and f' ({end})'}: "
                "copy or record it anew"
            )
        if not cut:
            return GpuprofError(f"{path} is no JSON, at byte {error.pos} of its text ({error.msg.lower()}): {_RECORD}")
    except (ValueError, RecursionError):
        pass
    if isinstance(fields, dict) and "gpuprof" in fields:
        return GpuprofError(f"{path} is a run of gpuprof already: see it with 'gpuprof show {path}'")
    if isinstance(fields, dict) and "traceEvents" in fields:
        return GpuprofError(f"{path} is no trace, for its traceEvents are no list: {_RECORD}")
    return GpuprofError(f"{path} is JSON but no trace, for it has no traceEvents: {_RECORD}")


def other_device(categories: Iterable[str]) -> str | None:
    """Of which device that is not read a trace is, by the categories of its events; None where of none."""
    kinds = {category.partition("_")[0] for category in categories}
    return next((name for kind, name in _DEVICES.items() if kind in kinds), None)


def _head(path: Path) -> bytes:
    """The first bytes of a file, unpacked.

    Raises:
        GpuprofError: there are none.
    """
    if path.is_dir():
        raise GpuprofError(f"{path} is a folder: give the traces in it, such as {path / '*.pt.trace.json'}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError as error:
        raise GpuprofError(f"no file {path}: give a trace that torch.profiler has saved") from error
    except OSError as error:
        raise GpuprofError(f"cannot read {path}: {error.strerror or error}") from error
    if head.startswith(b"\x1f\x8b"):
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            head = unpack.decompress(head, _HEAD)
        except zlib.error as error:
            raise GpuprofError(f"{path} is damaged, as gzip ({error}): copy or record it anew") from error
        if not head and not unpack.eof:
            raise GpuprofError(f"{path} is cut short before its gzip data say anything: copy or record it anew")
    if not head.strip():
        raise GpuprofError(f"{path} is empty: {_RECORD}")
    return head


def _foreign(path: Path, head: bytes) -> str:
    """What a file is that is neither JSON nor a table."""
    if head.startswith(b"SQLite format 3\0"):
        return f"an SQLite database, such as an export {_SYSTEMS}"
    if head.startswith(b"NVR\0") or path.suffix == ".ncu-rep":
        return _REPORT.format(path=path)
    if path.suffix in (".nsys-rep", ".qdrep", ".qdstrm"):
        return f"a report {_SYSTEMS}"
    if head.startswith(b"==PROF=="):
        return "what Nsight Compute prints for people: print a table, which is read, with 'ncu --csv --page raw'"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return _PICKLE
    if head.startswith(b"PK\x03\x04") or head[257:262] == b"ustar":
        return "an archive: unpack it and give the trace in it"
    return f"no JSON, for it begins with {head[:16]!r}: {_RECORD}"
