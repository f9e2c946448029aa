"""Whatever surrounds a run: launchers, services, closed pipes, odd homes, names and networks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from material import assert_one_sentence, make_pictures, run, snapshot

from customttt import learn, opening
from customttt import library as store
from customttt.backbones import hub
from customttt.config import MAX_SEED
from customttt.errors import StoreError, UsageError
from customttt.library import Library
from customttt.text import escaped
from customttt_cli import output

SEALED = "\x1b[2J\x9b31m\u202eevil\ud800"
QUICK = ("--steps", 1, "--rank", 1)


def process(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "customttt_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **settings)  # type: ignore[call-overload,no-any-return]


def test_a_file_name_that_is_not_utf_8_is_learned_from(tiny_random_base: Path, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "imgs", 1)
    try:
        next(folder.iterdir()).rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    except OSError:
        pytest.skip("this file system knows UTF-8 names alone")
    done = run("learn-appearance", "koala", folder, "--base", tiny_random_base, *QUICK)
    assert done.exit_code == 0, done.output
    assert Library().get("koala").sources[0].name == "caf\\udce9.jpg"


def test_a_manifest_is_whole_before_the_first_step(
    tiny_random_base: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise UsageError("This manifest cannot be written.")

    monkeypatch.setattr(learn, "manifest", broken)
    monkeypatch.setattr(learn, "to_video", lambda _: pytest.fail("the clip was encoded already"))
    assert_one_sentence(run("learn-motion", "swimming", clip, "--base", tiny_random_base), 2, "cannot be written")


def test_a_launcher_s_environment_is_not_waited_for(
    tiny_random_base: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = process("learn-motion", "swimming", clip, "--base", tiny_random_base, *QUICK, env={**os.environ, **launched})
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    with opening.alone():
        assert "WORLD_SIZE" not in os.environ
    assert os.environ["WORLD_SIZE"] == "2"


@pytest.mark.parametrize("command", ["learn-motion", "compose"])
def test_one_range_of_seeds_for_every_command(
    learned: Path, clip: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("dive", clip) if command == "learn-motion" else ("koala", "swimming")
    base = ("--base", Library(learned).get("koala").base) if command == "learn-motion" else ()
    too_large = run(command, *names, *base, "--seed", MAX_SEED + 1)
    assert_one_sentence(too_large, 2, "seed", "0 to 2^64 - 1")
    assert_one_sentence(run(command, *names, *base, "--seed", -1), 2, "0 to 2^64 - 1")
    plain = ("--no-ttt",) if command == "compose" else ()
    done = run(command, *names, *base, *plain, "--seed", MAX_SEED, "--steps", 1)
    assert done.exit_code == 0, done.output


def test_videos_of_the_largest_seed_and_the_next_are_refused(learned: Path) -> None:  # noqa: ARG001
    assert_one_sentence(run("compose", "koala", "swimming", "--seed", MAX_SEED, "--num", 2), 2, "2^64 - 1")


def test_closed_streams_are_empty_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    output.begin()
    assert not output.interactive()
    output.result("a path")
    output.say("a sentence")
    assert not output.confirm("Really?")


@pytest.mark.skipif(os.name == "nt", reason="there is no sh")
def test_a_run_does_not_end_because_nobody_reads_on(tmp_path: Path) -> None:
    script = (
        "from customttt_cli import output\n"
        "from pathlib import Path\n"
        "output.begin()\n"
        "for n in range(3000):\n"
        "    output.say('x' * 80); output.result('y' * 80)\n"
        f"Path({str(tmp_path / 'done')!r}).write_text('done')\n"
    )
    for pipes in ("2>&1 | head -n 1", "2> >(head -n 1 >&2)", "3>&1 >&2 2>&3 | head -n 1"):
        command = ["bash", "-c", f'{sys.executable} -c "$0" {pipes}', script]
        subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert (tmp_path / "done").exists(), pipes
        (tmp_path / "done").unlink()


@pytest.mark.parametrize("endpoint", ["", "hub.example.org", "ftp://hub.example.org"])
@pytest.mark.usefixtures("cache")
def test_an_address_of_the_hub_that_is_none_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "ENDPOINT", endpoint)
    assert_one_sentence(run("bases", "pull", "zeroscope"), 10, f"HF_ENDPOINT is '{endpoint}'")


@pytest.mark.usefixtures("cache")
def test_a_socks_proxy_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setattr(hub, "find_spec", lambda _: None)
    assert_one_sentence(run("bases", "pull", "zeroscope"), 10, "SOCKS proxy", "pip install socksio")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSPC])
def test_what_a_save_needs_is_tried_before_the_first_step(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = store.sync

    def failing(path: Path) -> None:
        if path.is_dir():
            raise OSError(code, os.strerror(code))
        whole(path)

    monkeypatch.setattr(store, "sync", failing)
    with pytest.raises(StoreError, match="make room" if code == errno.ENOSPC else r"\(Invalid argument\); set CUSTOM"):
        Library().check_writable()


def test_a_file_system_without_locks_is_found_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lockless:
        def __init__(self, *_: object, **__: object) -> None:
            raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock", Lockless)
    with pytest.raises(StoreError, match="no locks"):
        Library().check_writable()


def test_checking_leaves_the_library_as_it_was(learned: Path) -> None:
    before = snapshot(learned)
    Library(learned).check_writable()
    assert snapshot(learned) == before


def test_a_home_that_is_not_there_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_sentence(run("list", env={"CUSTOMTTT_HOME": "~nosuchuser/x"}), 2, "CUSTOMTTT_HOME", "no such user")

    def homeless(*_: object, **__: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_data_path", homeless)
    assert_one_sentence(run("list", env={"CUSTOMTTT_HOME": ""}), 2, "set CUSTOMTTT_HOME")


def test_the_home_of_a_user_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CUSTOMTTT_HOME", "~/concepts")
    assert Library().root == tmp_path / "concepts"


def test_a_concept_behind_a_link_is_renamed_and_its_target_stays(learned: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (learned / "concepts" / "koala").rename(target)
    (learned / "concepts" / "koala").symlink_to(target)
    Library(learned).rename("koala", "bear")
    assert not os.path.lexists(learned / "concepts" / "koala")
    assert list((learned / ".staging").iterdir()) == []
    assert (target / "manifest.json").exists()
    assert Library(learned).verify() == []


# -- what strangers wrote is shown, and not obeyed


def test_controls_are_shown_as_escapes_that_json_reads() -> None:
    assert escaped(SEALED) == "\\u001b[2J\\u009b31m\\u202eevil\\ud800"
    assert escaped("a\tb\nc", keep="\n") == "a\\u0009b\nc"
    assert json.loads(f'"{escaped(SEALED)}"') == SEALED
    assert escaped("Zoë\u200d🐨\u3000über") == "Zoë\u200d🐨\u3000über"


def test_nothing_that_is_printed_reaches_the_terminal_unescaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.result(SEALED)
    output.say(SEALED)
    output.warn(SEALED)
    output.error(SEALED)
    output.table(["name"], [[SEALED]], [False])
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert "evil" in text
        assert not any(character in text for character in "\x1b\x9b\u202e\ud800")


def test_the_recipe_of_a_stranger_s_video_is_shown_escaped(tmp_path: Path) -> None:
    import numpy as np

    from customttt import media

    wicked = {"customttt": 1, "appearance": {"name": SEALED.replace("\ud800", "")}}
    media.write_video(tmp_path / "a.mp4", np.zeros((2, 32, 32, 3), np.uint8), 8, wicked)
    done = run("show", tmp_path / "a.mp4")
    assert not any(character in done.output for character in "\x1b\x9b\u202e")
