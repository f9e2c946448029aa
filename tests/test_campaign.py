"""The campaign's scripts run: a few of their trials. How thousands ended stands in LOG.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "campaign"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials are forks")
@pytest.mark.parametrize(("script", "trials"), [("kills", 24), ("flips", 100), ("together", 2)])
def test_a_script_finds_nothing(script: str, trials: int) -> None:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), str(trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 failures" in done.stdout
