"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of its own for every test: nothing reaches the user's."""
    root = tmp_path / "home"
    monkeypatch.setenv("CUSTOMTTT_HOME", str(root))
    return root
