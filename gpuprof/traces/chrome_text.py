"""The text of a Chrome trace, as torch.profiler writes it: its events in pieces, each decoded at once, and header.

Ten million events are gigabytes of text: no more than a block of it is in memory. A block is cut where an event seems
to end and another to begin. Nothing is taken on trust: only a text between two cuts that decodes as a whole list of
events was cut outside of every event and string. What does not decode so is read event by event.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from gpuprof.errors import GpuprofError, first_line
from gpuprof.late import np
from gpuprof.traces.foreign import no_trace

try:
    import msgspec
    from msgspec import Raw
except ImportError as missing:
    raise GpuprofError("traces are read with msgspec, which is not installed: pip install 'msgspec>=0.19'") from missing

BLOCK = 4 << 20
"""Bytes of text decoded at once."""

UNREADABLE = "a field of the wrong type"
"""Why an event is left out that cannot be decoded."""

UNDECODABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What is raised where a text does not decode: the last where it is nested too deep."""

Progress = Callable[[int, int], None]
"""Told how many bytes of the file are read, and of how many."""

_HEADER_LIMIT = 256 << 20  # where no list of events begins in so much text, none is coming
_INEXACT = float(2**43)  # microseconds from which a float no longer tells nanoseconds apart
_GZIP = b"\x1f\x8b"
_EVENTS = "traceEvents"
_LIST = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(r"[ \t\r\n]*(,?)[ \t\r\n]*")


_LENIENT = json.JSONDecoder(
    strict=False,
    parse_constant=lambda _: None,
    parse_int=lambda text: int(text) if len(text) < 40 else None,
    parse_float=lambda text: value if math.isfinite(value := float(text)) else None,
)


class Args(msgspec.Struct, gc=False):
    """What is read of an event's ``args``, with what stands for a field that is absent. The rest is skipped."""

    shapes: Raw = msgspec.field(name="Input Dims", default=Raw())
    types: Raw = msgspec.field(name="Input type", default=Raw())
    concrete: Raw = msgspec.field(name="Concrete Inputs", default=Raw())
    strides: Raw = msgspec.field(name="Input Strides", default=Raw())
    number: int | None = msgspec.field(name="Sequence number", default=-1)
    forward_thread: int | None = msgspec.field(name="Fwd thread id", default=0)
    python_id: int | None = msgspec.field(name="Python id", default=-1)
    correlation: int | None = -1
    device: int | str | None = None
    stream: int | str | None = None
    shapes_2020: Raw = msgspec.field(name="Input dims", default=Raw())


class Event(msgspec.Struct, gc=False):
    """What is read of an event; times are microseconds, NaN where there is none."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | str | None = None
    tid: int | str | None = None
    ts: float = math.nan
    dur: float = math.nan
    args: Args | None = None


class ExactEvent(Event, gc=False):
    """An event of a file whose times no float holds to the ns, as of early 2024: its time is left as text."""

    ts: Raw = Raw()  # type: ignore[assignment]


class _Break(NamedTuple):
    """Where a text stops being a list of events: the byte, why, and whether no further text can mend it."""

    at: int
    why: str
    final: bool


class _Decoder:
    """Decodes events; once a file has shown a time that a float does not hold, exactly.

    Attributes:
        exact: whether it has.
    """

    def __init__(self) -> None:
        self._use(Event)

    def _use(self, kind: type[Event]) -> None:
        self.exact = kind is ExactEvent
        self._many: Callable[[bytes | Raw], list[Event]] = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
        self._one: Callable[[bytes], Event] = msgspec.json.Decoder(kind).decode
        self._lax: Callable[[bytes], Event] = msgspec.json.Decoder(kind, strict=False).decode

    def many(self, text: bytes | Raw) -> list[Event]:
        """The events of a list of them.

        Raises:
            UNDECODABLE: it is none, or not all of its fields are of the type that they should be.
        """
        events = self._many(text)
        return events if self._held(events) else self._many(text)

    def one_by_one(self, texts: list[bytes]) -> list[Event]:
        """Those events that can be read."""
        events = [event for text in texts if (event := self._read(text))]
        return events if self._held(events) else [event for text in texts if (event := self._read(text))]

    def _held(self, events: list[Event]) -> bool:
        """Whether their times are exact; from here on they are."""
        if self.exact:
            return True
        times = np.array([event.ts for event in events], np.float64)
        if not ((times >= _INEXACT) & (times % 1 != 0)).any():
            return True
        self._use(ExactEvent)
        return False

    def _read(self, text: bytes) -> Event | None:
        """An event, its fields brought to their types where that is plain, such as a number in quotes; else None."""
        try:
            return self._one(text)
        except UNDECODABLE:
            pass
        try:
            event = _lenient(text)
            event = {key: value for key, value in event.items() if value is not None}
            if "args" in event:
                event["args"] = {key: value for key, value in event["args"].items() if value is not None}
            return self._lax(json.dumps(event, ensure_ascii=False).encode("utf-8", "replace"))
        except (*UNDECODABLE, AttributeError):
            return None


def pieces(path: Path, header: dict[str, Any], left_out: Counter[str], progress: Progress) -> Iterator[list[Event]]:
    """The events of a file, in its order, a block of text at a time.

    Args:
        path: JSON, plain or in gzip, whatever its name.
        header: is given every field beside the list of events, as decoded. Not to be kept as it is: some files carry
            the environment of their process there.
        left_out: is told how many events could not be decoded, under `UNREADABLE`.
        progress: called for each block.

    Raises:
        GpuprofError: the file cannot be read, is no JSON, cut short or damaged, or has no list of events.
    """
    blocks = _blocks(path, progress)
    text, before, bare = _open(path, blocks, header)
    decoder = _Decoder()
    count = 0
    for block, end in blocks:
        text += block
        stop: _Break | None = None
        try:
            events, used, closed = _at_once(text, end, bare, decoder)
        except UNDECODABLE:
            texts, used, stop = _one_by_one(text)
            events, closed = decoder.one_by_one(texts), stop is None
            if skipped := len(texts) - len(events):
                left_out[UNREADABLE] += skipped
                count += skipped
        count += len(events)
        yield events
        if stop and (stop.final or end is not None):
            raise _broken(path, count, stop, before, text, used, end)
        before += used
        text = text[used:]
        if closed:
            header.update(_after(path, text, end, blocks, count, bare))
            return


def _blocks(path: Path, progress: Progress) -> Iterator[tuple[bytes, str | None]]:
    """The text in blocks, each with None; at last nothing, with what is wrong with the end of the file, if anything."""
    problem = ""
    try:
        with path.open("rb") as file:
            total = path.stat().st_size
            packed = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            for block in _unpacked(file) if packed else iter(lambda: file.read(BLOCK), b""):
                progress(file.tell(), total)
                yield block, None
    except (EOFError, zlib.error) as error:
        problem = f"its gzip data are {'cut short' if isinstance(error, EOFError) else 'damaged'}"
    except OSError as error:
        raise GpuprofError(f"cannot read {path}: {error.strerror or error}") from error
    yield b"", problem


def _unpacked(file: IO[bytes]) -> Iterator[bytes]:
    """The text of a gzip file, in blocks, as the gzip module gives it but for what comes before a damage: all of it."""
    unpack, block = None, b""
    while data := file.read(BLOCK // 4):
        while data or len(block) == BLOCK:
            unpack = unpack or zlib.decompressobj(zlib.MAX_WBITS | 16)
            block = unpack.decompress(data, BLOCK)
            if block:
                yield block
            data = unpack.unconsumed_tail
            if unpack.eof:
                data, unpack, block = unpack.unused_data.lstrip(b"\0"), None, b""
    if unpack:
        raise EOFError


def _open(path: Path, blocks: Iterator[tuple[bytes, str | None]], header: dict[str, Any]) -> tuple[bytes, int, bool]:
    """The text behind the bracket that opens the list of events, the bytes before it, and whether that is all of them.

    Raises:
        GpuprofError: there is none.
    """
    text, searched = b"", 0
    for block, end in blocks:
        text += block
        head = text[: 1 << 10].removeprefix(codecs.BOM_UTF8).lstrip()
        if head.startswith(b"["):
            before = text.index(b"[") + 1
            return text[before:], before, True
        for found in _LIST.finditer(text, searched):
            try:
                header.update(_lenient(text[: found.end()].removeprefix(codecs.BOM_UTF8) + b"]}"))
            except UNDECODABLE:
                continue  # these words are inside of something else
            del header[_EVENTS]
            return text[found.end() :], found.end(), False
        searched = max(0, len(text) - 64)
        if end is not None or (head and not head.startswith(b"{")) or len(text) > _HEADER_LIMIT:
            raise no_trace(path, text, end)
    raise AssertionError("blocks end with an end")


def _at_once(text: bytes, end: str | None, bare: bool, decoder: _Decoder) -> tuple[list[Event], int, bool]:
    """The events of a text, up to a cut between two, or to the end of their list at the end of the file.

    Returns:
        Them, the bytes of the text that hold them, and whether their list is closed there.

    Raises:
        UNDECODABLE: the text is not all events and well-formed, or was cut inside one.
    """
    if end:
        raise ValueError(end)
    if end is None:
        cut = _cut(text)
        if not cut:
            return [], 0, False
        return decoder.many(b"".join((b"[", memoryview(text)[: cut[0]], b"]"))), cut[1], False
    if bare:
        return decoder.many(b"[" + text), len(text), True
    listed = msgspec.json.decode(b'{"traceEvents":[' + text, type=dict[str, Raw])[_EVENTS]
    return decoder.many(listed), len(bytes(listed)) - 1, True


def _cut(text: bytes) -> tuple[int, int] | None:
    """Where the last event seems to begin, and where the one before it ends: at ``}``, ``,``, ``{``."""
    start = len(text)
    while (start := text.rfind(b"{", 0, start)) > 0:
        before = text[max(0, start - 256) : start].rstrip()
        if before.endswith(b","):
            before = before[:-1].rstrip()
            if before.endswith(b"}"):
                return max(0, start - 256) + len(before), start
    return None


def _one_by_one(text: bytes) -> tuple[list[bytes], int, _Break | None]:
    """The texts of the whole events at the beginning of a text, whatever their fields.

    Returns:
        Them, the bytes of the text that hold them, and why it does not go on there: None where their list is closed.
    """
    events: list[bytes] = []
    letters = text.decode("latin-1")  # a letter for each byte
    at = _BETWEEN.match(letters).end()  # type: ignore[union-attr]
    while letters[at : at + 1] != "]":
        try:
            _, after = _LENIENT.raw_decode(letters, at)
        except json.JSONDecodeError as error:
            # of a string without an end it says where it begins, of anything else where it is, of a word its beginning
            final = not error.msg.startswith("Unterminated") and error.pos < len(text) - 16
            return events, at, _Break(error.pos, error.msg.lower(), final)
        except (ValueError, RecursionError) as error:
            return events, at, _Break(at + 1, first_line(error), True)
        events.append(text[at:after])
        between = _BETWEEN.match(letters, after)
        at = between.end()  # type: ignore[union-attr]
        if not between[1] and letters[at : at + 1] not in ("]", ""):  # type: ignore[index]
            return events, after, _Break(at, "expecting ',' or ']'", True)
    return events, at + 1, None


def _after(
    path: Path, text: bytes, end: str | None, blocks: Iterator[tuple[bytes, str | None]], count: int, bare: bool
) -> dict[str, Any]:
    """The fields behind the list of events.

    Raises:
        GpuprofError: what is there is not the rest of a JSON text, or is a second list of events.
    """
    for block, problem in blocks:
        text, end = text + block, problem
    try:
        if end:
            raise ValueError(end)
        if bare and text.strip():
            raise ValueError("there is text after its end")
        fields = {} if bare else _lenient(b'{"":0' + text)
    except UNDECODABLE as error:
        why = error.msg.lower() if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise GpuprofError(
            f"{path} is cut short or damaged after event {count} ({why}): copy or record it anew"
        ) from error
    if _EVENTS in fields:
        raise GpuprofError(f"{path} has two lists of events: give each in a file of its own")
    return fields


def _broken(path: Path, count: int, stop: _Break, before: int, text: bytes, used: int, end: str | None) -> GpuprofError:
    """What is said of a text that stops being a list of events."""
    where = f"in event {count + 1}" if text[used : stop.at].strip(b" \t\r\n,") else f"after event {count}"
    if stop.final:
        return GpuprofError(f"{path} is no JSON {where}, at byte {before + stop.at} of its text: {stop.why}")
    return GpuprofError(
        f"{path} is cut short: it ends {where}, at byte {before + len(text)} of its text{end and f' ({end})'}: "
        "copy or record it anew"
    )


def _lenient(text: bytes) -> Any:
    """A JSON value as lenient as Python reads it, but with None for what is no finite number.

    Raises:
        UNDECODABLE: it is none.
    """
    return _LENIENT.decode(text.decode("utf-8", "replace"))


def decoded(text: bytes) -> Any:
    """What a JSON text says; None where there is none, or it does not decode."""
    try:
        return msgspec.json.decode(text)
    except UNDECODABLE:
        return None
