"""The manifest: it round-trips, it tells damage, and bad names never reach a disk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from customttt.concept import FORMAT_VERSION, Concept, Source, check_name
from customttt.errors import DamagedError, UsageError

# what version 0.1.0 wrote, byte for byte: it must load for ever
FORMAT_1 = """{
  "digest": "5d82f2e7d722d7cf77e25b2bca11c9fa59aa2d0a073a2d62e1bfa4e87aac2eb5",
  "format_version": 1,
  "name": "koala",
  "kind": "appearance",
  "phrase": "koala",
  "prompt": "A koala.",
  "base": "tiny",
  "base_fingerprint": "f00d",
  "layers": [2, 6],
  "rank": 32,
  "steps": 2,
  "learning_rate": 1e-05,
  "seed": 0,
  "sources": [{"name": "1", "sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}],
  "inputs": "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
  "losses": [0.5, 0.25],
  "files": {"lora.safetensors": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"},
  "versions": {"customttt": "0.1.0"},
  "created": "2025-01-02T03:04:05Z",
  "seconds": 1.5
}
"""

UNPORTABLE = [
    "",
    "x" * 65,
    ".",
    "..",
    "../koala",
    "a/b",
    "a\\b",
    "/etc",
    "C:koala",
    "-f",
    ".hidden",
    "koala.",
]
UNPORTABLE += ["my koala", "ko\nala", "koala\n", "\x00", "狐", "con", "NUL", "com1", "LPT9.txt", "aux.koala"]


def concept(**changes: Any) -> Concept:
    fields: dict[str, Any] = {
        "name": "koala",
        "kind": "appearance",
        "phrase": "koala",
        "prompt": "A koala.",
        "base": "tiny",
        "base_fingerprint": "f00d",
        "layers": (2, 6),
        "rank": 32,
        "steps": 2,
        "learning_rate": 1e-5,
        "seed": 0,
        "sources": (Source(name="1", sha256="a" * 64),),
        "inputs": "c" * 64,
        "losses": (0.5, 0.25),
        "files": {"lora.safetensors": "b" * 64},
        "versions": {"customttt": "0.1.0"},
        "created": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        "seconds": 1.5,
    }
    return Concept(**{**fields, **changes})


def test_a_manifest_survives_json() -> None:
    saved = concept(phrase='a "red"\nfox = 狐', losses=(0.1, 1 / 3))
    assert Concept.from_json(saved.to_json()) == saved


def test_a_manifest_of_format_1_still_loads() -> None:
    assert Concept.from_json(FORMAT_1) == concept()


def test_the_text_of_format_1_does_not_change() -> None:
    assert concept().to_json() == FORMAT_1


def test_a_manifest_of_a_newer_format_asks_to_upgrade() -> None:
    text = concept().to_json().replace('"format_version": 1', f'"format_version": {FORMAT_VERSION + 1}')
    with pytest.raises(DamagedError, match="newer customttt"):
        Concept.from_json(text)


def test_every_flipped_byte_is_found() -> None:
    text = concept().to_json()
    for position in range(len(text)):
        flipped = text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :]
        with pytest.raises(DamagedError):
            Concept.from_json(flipped)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"digest": ""}', '{"digest": 3}', "[" * 100_000])
def test_what_is_no_manifest_is_damaged(text: str) -> None:
    with pytest.raises(DamagedError):
        Concept.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": (float("nan"),)},
        {"losses": (float("inf"),)},
        {"learning_rate": float("nan")},
        {"created": datetime(2025, 1, 1)},
        {"kind": "style"},
        {"rank": 0},
        {"layers": (-1,)},
        {"files": {"../lora.safetensors": "b" * 64}},
        {"files": {"lora.safetensors": "b" * 63}},
        {"unknown": 1},
        {"created": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))},
        {"phrase": "x" * 10**6},
        {"seed": 2**64},
        {"seed": -1},
    ],
)
def test_a_concept_refuses_what_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        concept(**changes)


def test_a_concept_does_not_change() -> None:
    with pytest.raises(ValidationError):
        concept().rank = 4


def test_the_time_is_kept_in_utc() -> None:
    here = datetime(2025, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert concept(created=here).created == concept().created
    assert '"created": "2025-01-02T03:04:05Z"' in concept(created=here).to_json()


@pytest.mark.parametrize("name", ["koala", "Koala-2", "a", "7", "red_fox.v1", "x" * 64, "console", "com"])
def test_portable_names_are_accepted(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", UNPORTABLE)
def test_unportable_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a concept's name"):
        check_name(name)
