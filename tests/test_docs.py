"""What the documents say is so."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_architecture import ORDER
from typer.core import TyperGroup
from typer.main import get_command

import customttt
from customttt.measure.compare import METHODS
from customttt_cli.app import DEFERRED, app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    "README.md",
    "LOG.md",
    "customttt/tiny/MODEL_CARD.md",
    *(f"docs/{one.name}" for one in (ROOT / "docs").glob("*.md")),
]
MAX_README = 9 * 1024


def script(name: str) -> ModuleType:
    """A script of `docs/`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


reference = script("reference")


def shown_commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """The commands that the help shows, as they are typed, with those of groups."""
    found: dict[str, Any] = {}
    for name, one in group.commands.items():
        if not one.hidden:
            found |= {prefix + name: one, **(shown_commands(one, f"{name} ") if isinstance(one, TyperGroup) else {})}
    return found


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= MAX_README


@pytest.mark.parametrize("name", PAGES)
def test_every_command_in_a_page_exists(name: str) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    used = {found for block in blocks for found in re.findall(r"customttt ([a-z][a-z-]+)", block)}
    assert used <= set(DEFERRED)
    assert name != "README.md" or {"learn-appearance", "learn-motion", "compose", "list", "demo"} <= used


@pytest.mark.parametrize("name", PAGES)
def test_every_link_in_a_page_leads_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", (ROOT / name).read_text()):
        if "://" in target:
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path.read_text()), anchor


def anchors(text: str) -> set[str]:
    """Of headings, and those that are written out."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[\s]", "-", re.sub(r"[^\w\s-]", "", title.lower())) for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("name", PAGES)
def test_the_python_of_a_page_imports_what_there_is(name: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        modules = {"customttt": customttt}
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("customttt"):
                modules |= {alias.name: member(node.module, alias.name) for alias in node.names}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                assert hasattr(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


def member(module: str, name: str) -> Any:
    """What `from module import name` brings."""
    found = import_module(module)
    return getattr(found, name) if hasattr(found, name) else import_module(f"{module}.{name}")


def test_the_reference_has_every_command_and_every_option() -> None:
    page = reference.page()
    group = get_command(app)
    found = shown_commands(group)
    assert {one.name for one in reference.commands()} == set(found)
    sections = dict(re.findall(r"^### customttt ([^\n]+)\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE))
    for name, command in found.items():
        for one in command.params:
            spellings = one.opts if one.param_type_name == "option" else [(one.metavar or one.name).removesuffix("...")]
            for spelling in {*spellings} - {"--help", "-h"}:
                assert f"`{spelling}`".lower() in sections[name].lower(), (name, spelling)
        assert str(command.epilog).removeprefix("Example: ") in sections[name]


def test_the_reference_names_the_choices_and_defaults() -> None:
    page = reference.page()
    assert "| `--format` | `customttt`, `diffusers`, `kohya`, `comfyui` |" in page
    assert "Default: `customttt-compare`." in page
    assert "customttt rm [OPTIONS] NAME..." in page
    assert "Environment: `CUSTOMTTT_BASE`." in page


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'grep -m 1 "python -m pytest" README.md' in script
    assert "pip install -e '.[test]' && python -m pytest" in README


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    from customttt import errors
    from customttt_cli import guard

    table = reference.exit_codes()
    assert table in (ROOT / "docs" / "exit-codes.md").read_text(), "python docs/reference.py exit-codes"
    listed = {int(code) for code in re.findall(r"^\| (\d+) ", table, re.MULTILINE)}
    codes = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type)}
    assert listed == {0, *codes, guard.INTERRUPTED, *(128 + number for number in guard.ENDING)}


def test_the_reading_order_of_the_docs_is_that_of_the_imports() -> None:
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` ", (ROOT / "docs" / "how-it-works.md").read_text(), re.MULTILINE)
    last = {name.split(".")[0]: place for place, name in enumerate(ORDER)}
    assert rows == sorted(last, key=lambda name: last[name])


def test_the_index_of_the_log_has_every_entry() -> None:
    log = (ROOT / "LOG.md").read_text()
    entries = re.findall(r'(?:<a id="([^"]+)"></a>\n\n)?^## \d{4}-\d\d-\d\d: ', log, re.MULTILINE)
    index = log[log.index("## Index") : log.index("<a id=")]
    assert entries
    assert set(entries) == set(re.findall(r"\]\(#([^)]+)\)", index))


def test_the_docs_have_every_method_of_compare() -> None:
    text = (ROOT / "docs" / "measure.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \|", text[text.index("| `--methods`") :], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows[1:]))) == set(METHODS)


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    written = {one.name for one in (ROOT / "docs").glob("*.md")}
    source = (ROOT / "docs" / "pages.py").read_text()
    assert written <= menu
    assert all(f'"{name}"' in source for name in menu - written)


def test_the_changelog_knows_this_version() -> None:
    assert f"## {customttt.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_bounded_below() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all(">=" in dependency for dependency in project["dependencies"])


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LOG.md", "customttt/tiny/MODEL_CARD.md"])
def test_documents_are_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500
