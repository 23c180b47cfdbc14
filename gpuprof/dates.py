"""Dates as they are told and kept: UTC, ISO 8601."""

from __future__ import annotations

from datetime import UTC, datetime

from gpuprof.errors import GpuprofError


def in_utc(date: str) -> datetime:
    """The moment of a date, with or without a time; without an offset it is UTC already.

    Raises:
        ValueError: it is not ISO 8601, or beyond the years that there are.
    """
    try:
        moment = datetime.fromisoformat(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"no date {date!r}") from error


def kept(date: str) -> str:
    """A date as histories keep it, to the second.

    Raises:
        GpuprofError: it is none.
    """
    try:
        return in_utc(date).isoformat(timespec="seconds")
    except ValueError as error:
        raise GpuprofError(f"{error}: give one such as 2026-01-31 or 2026-01-31T12:00") from error
