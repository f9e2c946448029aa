"""What the documents say is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import customttt
from customttt_cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> set[str]:
    """Names of all commands of the command line."""
    groups = {group.name for group in app.registered_groups if group.name}
    return groups | {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}


def test_every_command_in_the_readme_exists() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    used = {name for block in blocks for name in re.findall(r"customttt ([a-z-]+)", block)}
    assert {"learn-appearance", "learn-motion", "compose", "list", "demo"} <= used
    assert used <= commands()


def test_every_link_in_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'grep -m 1 "python -m pytest" README.md' in script
    assert "pip install -e '.[test]' && python -m pytest" in README


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    from customttt import errors

    codes = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type)}
    listed = {int(code) for code in re.findall(r"(?:^|, |,\n)(\d+) [a-z]", README[README.index("## Exit codes") :])}
    assert codes <= listed


def test_the_changelog_knows_this_version() -> None:
    assert f"## {customttt.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_bounded_below() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all(">=" in dependency for dependency in project["dependencies"])


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LOG.md", "customttt/tiny/MODEL_CARD.md"])
def test_documents_are_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500
