"""`tiny`: the base model that ships inside the package, the world it was trained on, and the script that trained it."""

from __future__ import annotations

from pathlib import Path

TINY_PATH = Path(__file__).parent
"""Folder of package data: `weights/` (plain diffusers folders), `sprites/`, `demo/` (pictures and a clip)."""
