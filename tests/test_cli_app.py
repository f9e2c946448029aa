"""The command line as a whole: its help, its examples, its version."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from material import assert_one_sentence, run
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

import customttt
from customttt.library import Library
from customttt.progress import Progress, Report
from customttt_cli import app as commands
from customttt_cli import completion, output
from customttt_cli.app import app
from customttt_cli.options import at_home

group = get_command(app)
assert isinstance(group, TyperGroup)
COMMANDS = group.commands


def test_no_command_shows_the_help_in_three_groups() -> None:
    shown = run().output
    assert run("--help").exit_code == 0
    for words in ("Learn", "Compose", "Library", *(name for name, one in COMMANDS.items() if not one.hidden)):
        assert words in shown


@pytest.mark.parametrize(("charset", "said"), [("utf-8", "łé🐨"), ("cp1252", "\\u0142é\\ud83d\\udc28")])
def test_what_a_terminal_cannot_write_is_escaped(tmp_path: Path, charset: str, said: str) -> None:
    done = CliRunner(charset=charset).invoke(app, ["path"], env={"CUSTOMTTT_HOME": str(tmp_path / "łé🐨")})
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / said}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_s_help_has_an_example_that_parses(name: str) -> None:
    shown = run(name, "--help", env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    found = re.search(r"Example: customttt (.+?)\s*$", shown.stdout, re.MULTILINE)
    assert found, shown.stdout
    command, *arguments = shlex.split(found[1])
    assert COMMANDS[command].help == COMMANDS[name].help
    COMMANDS[command].make_context(command, arguments)


def test_every_command_knows_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[object] = []

    def noted(function: Callable[..., object]) -> Callable[..., object]:
        wrapped.append(function)
        return at_home(function)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "at_home", noted)
        for name, entry in commands.DEFERRED.items():
            entry.made(name)
            assert wrapped.pop() is entry.code if name != "bases" else not wrapped
    monkeypatch.setenv("HOME", str(tmp_path))
    given: dict[str, object] = {}
    at_home(lambda **values: given.update(values))(
        out=Path("~/a.mp4"),
        images=[Path("~"), Path("b/~")],
        base="~/base",
        thing="~/a.mp4",
        prompt="~/on Mars",
        none=None,
    )
    assert given == {
        "out": tmp_path / "a.mp4", "images": [tmp_path, Path("b/~")], "base": f"{tmp_path}/base",
        "thing": f"{tmp_path}/a.mp4", "prompt": "~/on Mars", "none": None,
    }  # fmt: skip


def test_a_home_folder_of_nobody_is_a_usage_error() -> None:
    done = run("learn-motion", "swimming", "~nosuchuser/clip.mp4")
    assert_one_sentence(done, 2, "'~nosuchuser/clip.mp4' begins with a home folder that is not known here")


def test_help_names_every_choice() -> None:
    from customttt.backbones import known_bases
    from customttt.measure.compare import METHODS

    def shown(command: str) -> str:
        return " ".join(run(command, "--help", env={"COLUMNS": "400"}).stdout.split())

    assert set(completion.BASES) == set(known_bases())
    for command in ("learn-appearance", "learn-motion", "compose", "compare", "influence", "import"):
        assert "tiny, animatediff, modelscope, zeroscope, wan, a folder or a hub id" in shown(command), command
    assert f"Some of {', '.join(METHODS)};" in shown("compare")
    assert "customttt|diffusers|kohya" in shown("export")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("compose ", {"koala"}),
        ("compose koala ", {"swimming"}),
        ("compare k", {"koala"}),
        ("show ", {"koala", "swimming"}),
        ("rm koala s", {"swimming"}),
        ("export sw", {"swimming"}),
        ("learn-motion dive clip.mp4 --base a", {"animatediff"}),
        ("compose koala swimming --base z", {"zeroscope"}),
        ("bases pull m", {"modelscope"}),
        ("compare koala swimming --methods di", {"direct", "diffdirector"}),
        ("compare koala swimming --methods direct,dir", set()),
        ("compare koala swimming --methods base,custom", {"base,customttt"}),
        ("export koala --format k", {"kohya"}),
    ],
)
@pytest.mark.usefixtures("learned")
def test_the_shell_offers_concepts_bases_and_methods(typed: str, offered: set[str]) -> None:
    env = {"_CUSTOMTTT_COMPLETE": "complete_bash", "COMP_WORDS": f"customttt {typed}"}
    done = run(env={**env, "COMP_CWORD": str(len(typed.split(" ")))})
    assert set(done.stdout.split()) == offered


def test_the_shell_offers_nothing_where_there_is_no_library() -> None:
    env = {"_CUSTOMTTT_COMPLETE": "complete_bash", "COMP_WORDS": "customttt show ", "COMP_CWORD": "2"}
    assert run(env={**env, "CUSTOMTTT_HOME": "~nosuchuser/x"}).stdout.split() == []


def test_the_version() -> None:
    assert run("--version").stdout == f"customttt {customttt.__version__}\n"


def test_an_unknown_option_or_command_is_a_usage_error() -> None:
    assert run("list", "--colour").exit_code == 2
    done = run("lst")
    assert done.exit_code == 2
    assert "list" in done.stderr


def test_python_m_is_the_same_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "customttt_cli", "path"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'home'}\n"


def test_the_demo_prints_the_contact_sheet_and_tells_its_story(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def story(folder: Path, library: Library, report: Report, say: Callable[[str], None], base: str) -> Path:
        assert base == "tiny"
        assert library.root == home
        say("Learning how this koala looks.")
        for step in (1, 2):
            report(Progress("denoising", step, 2))
        return folder / "contact-sheet.png"

    monkeypatch.setattr("customttt.tiny.demo.run", story)
    done = run("demo", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'out' / 'contact-sheet.png'}\n"
    base, first, *_ = done.stderr.splitlines()
    assert base.startswith("Base: tiny")
    assert first == "Learning how this koala looks."
    assert "Denoising: step 2 of 2" in done.stderr
    assert run("demo", "--output", "/proc/nowhere").exit_code == 11


def test_the_demo_wants_a_base_of_its_world(tiny_random_base: Path, tmp_path: Path) -> None:
    done = run("demo", "--output", tmp_path / "out", "--base", tiny_random_base)
    assert_one_sentence(done, 2, "does not draw; leave --base out")
    assert_one_sentence(run("demo", "--output", tmp_path / "out", "--base", "nowhere"), 10, "nowhere")


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.progress() as report:
        for step in range(1, 4):
            report(Progress("test-time training", step, 3, 0.25))
    shown = capfd.readouterr().err
    assert "Test-time training" in shown
    assert re.search(r"3/3 loss 0\.2500, .+ steps/s, 0 s left", shown)
