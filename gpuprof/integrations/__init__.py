"""The meter inside of training frameworks; each is loaded when its class is first used."""

from __future__ import annotations
