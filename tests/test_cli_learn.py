"""`learn-appearance` and `learn-motion`: what they print and store, and what they refuse before anything is loaded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import material
import pytest
from footage import encode, moving
from material import assert_one_sentence, run, snapshot

from customttt import backbones
from customttt.library import Library
from customttt.media import Clip
from customttt_cli.sources import Movement


def test_the_path_of_the_concept_is_all_of_stdout(home: Path, tiny_random_base: Path, pictures: Path) -> None:
    done = run("learn-appearance", "teddy-bear", pictures, "--base", tiny_random_base, "--seed", 7)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{home / 'concepts' / 'teddy-bear'}\n"
    assert f"Base: {tiny_random_base} (as asked)" in done.stderr
    assert "Learning the appearance: step 3 of 3, loss " in done.stderr
    assert "steps/s" in done.stderr
    assert "left" in done.stderr
    assert "Next: customttt learn-motion" in done.stderr
    concept = Library().get("teddy-bear", "appearance")
    assert (concept.phrase, concept.prompt) == ("teddy bear", "A teddy bear.")
    assert (concept.steps, concept.rank, concept.layers, concept.seed) == (3, 2, (2, 6), 7)
    assert [source.name for source in concept.sources] == ["0.jpg", "1.jpg", "2.jpg"]


def test_settings_reach_the_manifest(tiny_random_base: Path, clip: Path) -> None:
    settings = ("--steps", 2, "--rank", 3, "--learning-rate", 1e-3, "--layers", "6,2", "--frames", 3)
    words = ("--phrase", "diving", "--prompt", "A man is diving.", "--json")
    done = run("learn-motion", "dive", clip, "--base", tiny_random_base, *settings, *words)
    assert done.exit_code == 0, done.output
    concept = Library().get("dive", "motion")
    assert (concept.steps, concept.rank, concept.learning_rate, concept.layers) == (2, 3, 1e-3, (2, 6))
    assert (concept.phrase, concept.prompt) == ("diving", "A man is diving.")
    assert json.loads(done.stdout)["files"] == concept.files


def test_captions_that_are_longer_than_the_base_reads_are_told(tiny_random_base: Path, tmp_path: Path) -> None:
    folder = material.make_pictures(tmp_path / "imgs")
    (folder / "0.txt").write_text("koala, grey fur, sitting, tree, " * 50)
    done = run("learn-appearance", "koala", folder, "--base", tiny_random_base, "--steps", 1)
    assert done.exit_code == 0, done.output
    told = rf"warning: The caption of '0\.jpg' has \d\d\d+ tokens, and {tiny_random_base} reads \d+; its end"
    assert len(re.findall("tokens", done.stderr)) == len(re.findall(told, done.stderr)) == 1
    (folder / "1.txt").write_text("koala, grey fur, sitting, tree, " * 40 + "\na koala")
    done = run("learn-appearance", "bear", folder, "--base", tiny_random_base, "--steps", 1)
    assert "The caption of '0.jpg' and 1 more have up to" in done.stderr


def test_a_prompt_that_is_longer_than_the_base_reads_is_told(tiny_random_base: Path, clip: Path) -> None:
    prompt = ("--prompt", "A man is diving into the water. " * 20)
    done = run("learn-motion", "diving", clip, "--base", tiny_random_base, "--steps", 1, *prompt)
    assert re.search(r"warning: The prompt has \d+ tokens, and .* reads \d+; its end is ignored", done.stderr)


def test_a_prompt_nobody_learns_with_is_not_warned_of(tiny_random_base: Path, tmp_path: Path) -> None:
    folder = material.make_pictures(tmp_path / "imgs", 1)
    (folder / "0.txt").write_text("a koala")
    prompt = ("--prompt", "A koala is sitting in a tree. " * 20)
    done = run("learn-appearance", "koala", folder, "--base", tiny_random_base, "--steps", 1, *prompt)
    assert (done.exit_code, "tokens" in done.stderr) == (0, False)


def test_what_a_folder_holds_besides_pictures_is_named(tiny_random_base: Path, tmp_path: Path) -> None:
    folder = material.make_pictures(tmp_path / "imgs")
    (folder / "IMG_1.CR2").write_bytes(b"raw")
    (folder / "IMG_1.txt").write_text("a koala")
    done = run("learn-appearance", "koala", folder, "--base", tiny_random_base, "--steps", 1)
    assert done.exit_code == 0, done.output
    line = (
        f"Passed over in '{folder}': IMG_1.CR2 (no picture that can be read); "
        "IMG_1.txt (a caption without its picture)."
    )
    assert line in done.stderr.splitlines()


def test_a_prompt_in_any_script_is_learned_with(tiny_random_base: Path, clip: Path) -> None:
    prompt = "走る\u3000男\tand \u00a0\U0001f468\u200d\U0001f469"
    done = run("learn-motion", "running", clip, "--base", tiny_random_base, "--steps", 1, "--prompt", prompt)
    assert done.exit_code == 0, done.output
    assert Library().get("running").prompt == prompt


@pytest.mark.usefixtures("learned")
def test_the_next_command_names_a_partner(tiny_random_base: Path, pictures: Path) -> None:
    done = run("learn-appearance", "bear", pictures, "--base", tiny_random_base)
    assert 'Next: customttt compose bear swimming "on the beach"' in done.stderr


def test_the_same_input_again_is_nothing_to_do(learned: Path, tiny_random_base: Path, pictures: Path) -> None:
    before = snapshot(learned)
    done = run("learn-appearance", "koala", pictures, "--base", tiny_random_base)
    assert done.exit_code == 0, done.output
    assert "nothing to do" in done.stderr
    assert done.stdout == f"{learned / 'concepts' / 'koala'}\n"
    assert snapshot(learned) == before


@pytest.mark.parametrize(
    "changed", [("--steps", "4"), ("--seed", "1"), ("--layers", "2"), ("--noun", "bear"), ("--fit",), ("--rank", "1")]
)
def test_other_settings_under_a_taken_name_are_refused(
    learned: Path, tiny_random_base: Path, pictures: Path, changed: tuple[str, ...]
) -> None:
    before = snapshot(learned)
    done = run("learn-appearance", "koala", pictures, "--base", tiny_random_base, *changed)
    assert_one_sentence(done, 4, "'koala' is in the library already", "--force")
    assert snapshot(learned) == before


def test_a_damaged_concept_is_replaced_by_force_only(learned: Path, tiny_random_base: Path, pictures: Path) -> None:
    arguments = ("learn-appearance", "koala", pictures, "--base", tiny_random_base)
    (learned / "concepts" / "koala" / "lora.safetensors").write_bytes(b"")
    assert_one_sentence(run(*arguments), 6, "'koala' is damaged")
    (learned / "concepts" / "koala" / "manifest.json").write_text("{}")
    assert_one_sentence(run(*arguments), 4, "'koala'", "--force")
    assert run(*arguments, "--force").exit_code == 0
    assert run("verify").exit_code == 0


@pytest.mark.usefixtures("learned")
def test_force_replaces(tiny_random_base: Path, pictures: Path) -> None:
    done = run("learn-appearance", "koala", pictures, "--base", tiny_random_base, "--steps", 2, "--force")
    assert done.exit_code == 0, done.output
    assert Library().get("koala").steps == 2


@pytest.mark.usefixtures("learned")
def test_a_caption_beside_a_picture_is_learned_with(tiny_random_base: Path, tmp_path: Path) -> None:
    folder = material.make_pictures(tmp_path / "captioned")  # the same bytes as koala's
    (folder / "1.txt").write_text("A koala from behind.")
    assert run("learn-appearance", "koala", folder, "--base", tiny_random_base).exit_code == 4


def test_a_dry_run_says_what_it_would_do_and_does_nothing(home: Path, tiny_random_base: Path, clip: Path) -> None:
    done = run("learn-motion", "swimming", clip, "--base", tiny_random_base, "--dry-run", "--steps", 9)
    assert done.exit_code == 0, done.output
    assert str(tiny_random_base) in done.stdout
    for words in ("4 frames", "Layers 2, 5", "rank 2", "9 steps", "0.0001", "Something is swimming."):
        assert words in done.stdout
    assert re.search(r"Memory: 0\.\d GB of the [\d.]+ GB that are free; time: about \d+ s\.", done.stdout)
    assert not home.exists()


def test_a_dry_run_tells_programs_the_same(home: Path, tiny_random_base: Path, clip: Path) -> None:
    done = run("learn-motion", "swimming", clip, "--base", tiny_random_base, "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert (plan["name"], plan["layers"], plan["recomputed_blocks"], plan["fits"]) == ("swimming", [2, 5], [], True)
    assert 0 < plan["memory_bytes"] < plan["memory_free_bytes"]
    assert plan["seconds"] > 0
    assert not home.exists()


@pytest.mark.usefixtures("home")
def test_where_memory_is_short_blocks_are_recomputed_and_it_is_said(
    tiny_random_base: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from customttt import machine

    learn = ("learn-motion", "swimming", clip, "--base", tiny_random_base)
    needed = json.loads(run(*learn, "--dry-run", "--json").stdout)["memory_bytes"]
    monkeypatch.setattr(machine, "free_memory", lambda _: needed - 1)
    done = run(*learn)
    assert done.exit_code == 0, done.output
    assert "it goes on recomputing block" in done.stderr
    monkeypatch.setattr(machine, "free_memory", lambda _: 1)
    assert "It will hardly fit: it needs 0.0 GB of the 0.0 GB" in run(*learn, "--force", "--dry-run").stdout


def test_layers_may_be_those_that_were_measured(tiny_random_base: Path, clip: Path) -> None:
    """A block without motion modules, such as the middle one, gives way to the next that has some."""
    asked = ("learn-motion", "dive", clip, "--base", tiny_random_base, "--layers", "auto")
    assert_one_sentence(run(*asked), 3, "customttt influence")
    Library().add_carrying(backbones.identify(str(tiny_random_base)), "motion", (2, 4))
    done = run(*asked, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "Layers 2, 5; rank" in done.stdout


def test_the_base_may_come_from_the_environment(tiny_random_base: Path, clip: Path) -> None:
    done = run("learn-motion", "swimming", clip, "--dry-run", env={"CUSTOMTTT_BASE": str(tiny_random_base)})
    assert f"Base: {tiny_random_base}" in done.stdout


def test_a_relative_base_is_remembered_by_its_whole_path(
    tiny_random_base: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_random_base.parent)
    assert run("learn-motion", "swimming", clip, "--base", f"./{tiny_random_base.name}").exit_code == 0
    assert Library().get("swimming").base == str(tiny_random_base)


BAD_PICTURES: list[tuple[str, Callable[[Path], Path], int, str]] = [
    ("nowhere", lambda path: path, 3, "nowhere"),
    ("nowhere.jpg", lambda path: path, 3, "nowhere.jpg"),
    ("empty", material.empty_folder, 9, "has no picture that can be read"),
    ("text.jpg", material.text_file, 9, "text.jpg"),
    ("cut.jpg", material.cut(material.picture(300, 300)), 9, "cut.jpg"),
    ("dot.png", material.picture(1, 1), 9, "1x1"),
    ("huge.png", material.huge_png, 9, "huge.png"),
]
BAD_CLIPS: list[tuple[str, Callable[[Path], Path], int, str]] = [
    ("nowhere.mp4", lambda path: path, 3, "nowhere.mp4"),
    ("one.mp4", material.one_frame_clip, 9, "has 1 frame"),
    ("sound.mp4", material.sound_only, 9, "no video"),
    ("cut.mp4", material.cut(material.make_clip), 9, "cut.mp4"),
    ("list.m3u8", material.playlist, 9, "list.m3u8"),
    ("list.mp4", material.playlist, 9, "list.mp4"),
    ("text.mp4", material.text_file, 9, "text.mp4"),
]


BAD_INPUTS = [("learn-appearance", *case) for case in BAD_PICTURES] + [("learn-motion", *case) for case in BAD_CLIPS]


@pytest.mark.parametrize(("command", "name", "make", "code", "words"), BAD_INPUTS, ids=[case[1] for case in BAD_INPUTS])
def test_a_bad_picture_or_clip_is_one_sentence(
    learned: Path,
    tiny_random_base: Path,
    tmp_path: Path,
    command: str,
    name: str,
    make: Callable[[Path], Path],
    code: int,
    words: str,
) -> None:
    before = snapshot(learned)
    done = run(command, "bear", make(tmp_path / name), "--base", tiny_random_base)
    assert_one_sentence(done, code, words)
    assert snapshot(learned) == before


@pytest.mark.parametrize("address", ["https://example.com/clip.mp4", "rtsp://camera/1"])
def test_an_address_is_not_a_clip(home: Path, address: str) -> None:
    assert_one_sentence(run("learn-motion", "running", address), 9, "is a URL", "download")
    assert not home.exists()


BAD_SETTINGS = [
    (("../x",), 2, "../x"),
    (("con",), 2, "Windows"),
    (("Koala",), 4, "case"),
    (("swimming",), 4, "'swimming'"),  # taken by a motion
    (("bear", "--steps", "0"), 2, "'steps' is 0"),
    (("bear", "--rank", "0"), 2, "'rank' is 0"),
    (("bear", "--learning-rate", "0"), 2, "'learning rate' is 0"),
    (("bear", "--learning-rate", "nan"), 2, "'learning rate' is nan"),
    (("bear", "--seed", "-1"), 2, "The seed is -1"),
    (("bear", "--layers", "two"), 2, "--layers"),
    (("bear", "--layers", "9"), 2, "Layer 9"),
    (("bear", "--layers", "3"), 2, "Layer 3"),  # there is one, with nothing to learn in
    (("bear", "--noun", " "), 2, "--noun"),
    (("bear", "--prompt", "x" * 10_000), 2, "10,000 characters"),
    (("bear", "--prompt", "A bear\x1b[31m."), 2, "The prompt holds the control character U+001B"),
    (("bear", "--noun", "be\u202ear"), 2, "The noun holds the control character U+202E"),
    (("bear", "--base", "nonsense"), 10, "nonsense"),
    (("bear", "--base", "./nowhere"), 10, "nowhere"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD_SETTINGS, ids=[" ".join(c[0])[:30] for c in BAD_SETTINGS])
def test_a_bad_setting_is_one_sentence(
    learned: Path, tiny_random_base: Path, pictures: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    before = snapshot(learned)
    name, *options = arguments
    base = [] if "--base" in options else ["--base", tiny_random_base]
    assert_one_sentence(run("learn-appearance", name, pictures, *options, *base), code, words)
    assert snapshot(learned) == before


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--frames", "0"), 2, "0 frames"),
        (("--frames", "13"), 9, "has 12 frames"),
        (("--start", "-1"), 2, "-1"),
        (("--start", "1", "--end", "1"), 2, "end must be after"),
        (("--start", "99"), 9, "0 frames"),
    ],
)
def test_an_impossible_part_of_a_clip_is_one_sentence(
    home: Path, tiny_random_base: Path, clip: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    assert_one_sentence(run("learn-motion", "running", clip, "--base", tiny_random_base, *options), code, words)
    assert not home.exists()


def test_more_frames_than_the_base_knows_are_refused(tiny_random_base: Path, tmp_path: Path) -> None:
    long = material.make_clip(tmp_path / "long.mp4", 40)
    done = run("learn-motion", "running", long, "--base", tiny_random_base, "--frames", 33)
    assert_one_sentence(done, 2, "33", "at most 32")


def test_a_loss_that_is_not_a_number_saves_nothing(learned: Path, tiny_random_base: Path, pictures: Path) -> None:
    before = snapshot(learned)
    done = run("learn-appearance", "bear", pictures, "--base", tiny_random_base, "--learning-rate", 1e30)
    assert_one_sentence(done, 8, "nan", "nothing was saved", "--learning-rate")
    assert snapshot(learned) == before


@pytest.mark.parametrize("root", ["/proc/customttt", "file"])
def test_a_library_that_cannot_be_written_is_told_before_a_model_is_loaded(
    tiny_random_base: Path, pictures: Path, tmp_path: Path, root: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    home = str(tmp_path / root)  # an absolute `root` stands for itself
    done = run("learn-appearance", "bear", pictures, "--base", tiny_random_base, env={"CUSTOMTTT_HOME": home})
    assert_one_sentence(done, 11, home, "CUSTOMTTT_HOME")
    assert "Learning" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 KiB; for whoever may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192k", "none", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_a_clean_library(small_disk: Path, tiny_random_base: Path, pictures: Path) -> None:
    arguments = ("learn-appearance", "bear", pictures, "--base", tiny_random_base, "--rank", 32, "--steps", 1)
    home = {"CUSTOMTTT_HOME": str(small_disk / "home")}
    done = run(*arguments, env=home)
    assert "Learning" in done.stderr, "small things still fit when it begins"
    assert_one_sentence(done, 11, str(small_disk))
    assert snapshot(small_disk) == {}
    assert run("verify", env=home).stdout == "All 0 concepts are intact.\n"


def test_a_disk_full_from_the_start_is_told_before_a_model_is_loaded(
    small_disk: Path, tiny_random_base: Path, pictures: Path
) -> None:
    (small_disk / "ballast").write_bytes(bytes(170_000))
    home = {"CUSTOMTTT_HOME": str(small_disk / "home")}
    done = run("learn-appearance", "bear", pictures, "--base", tiny_random_base, env=home)
    assert_one_sentence(done, 11, "No space left")
    assert "Learning" not in done.stderr


def test_an_unexpected_error_is_one_sentence_and_debug_shows_where(
    tiny_random_base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("customttt.train._finite", lambda *_: 1 / 0)
    arguments = ("learn-appearance", "bear", pictures, "--base", tiny_random_base)
    assert_one_sentence(run(*arguments), 1, "ZeroDivisionError", "customttt --debug")
    assert "in optimize" in run("--debug", *arguments).stderr
    assert "in optimize" in run(*arguments, env={"CUSTOMTTT_DEBUG": "1"}).stderr


def _no_memory(*_: object) -> float:
    raise MemoryError


def _no_gpu_memory(*_: object) -> float:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")


def _no_cpu_memory(*_: object) -> float:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("fail", [_no_memory, _no_gpu_memory, _no_cpu_memory])
def test_too_little_memory_is_one_sentence(
    tiny_random_base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., float]
) -> None:
    monkeypatch.setattr("customttt.train._finite", fail)
    assert_one_sentence(run("learn-appearance", "bear", pictures, "--base", tiny_random_base), 7, "memory")


@pytest.mark.usefixtures("home")
def test_ctrl_c_saves_nothing_and_nothing_else_is_printed(tiny_random_base: Path, pictures: Path) -> None:
    """A process of its own: what the libraries below say at import and at exit would show here."""
    arguments = ["learn-appearance", "bear", str(pictures), "--base", str(tiny_random_base), "--steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "customttt_cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("Learning"):
            process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 130, lines
    assert stdout == ""
    assert lines[-1] == "Interrupted; nothing was saved.\n"
    known = ("Base: ", "Appearance ", "Layers ", "Memory: ", "Learning ", "Interrupted")
    assert [line for line in lines if not line.startswith(known)] == []
    assert run("list").stdout == ""
    assert run("verify").exit_code == 0


@pytest.mark.parametrize(
    ("rate", "count", "told"),
    [
        (16, 12, ""),
        (30, 24, ""),
        (8, 12, ", which videos show at 16: the movement becomes 2 times as fast"),  # its own frames, each once
        (30, 6, ", which videos show at 16: the movement becomes 0.67 times as fast"),  # shorter than 5 / 16 s
    ],
)
def test_a_clip_keeps_its_speed_or_it_is_said(
    tiny_random_wan_base: Path, tmp_path: Path, rate: int, count: int, told: str
) -> None:
    clip = encode(tmp_path / "clip.mp4", moving(count, 64, 64), rate)
    inputs, summary = Movement(clip, 0.0, None, None).read(str(tiny_random_wan_base))
    assert isinstance(inputs, Clip)
    assert summary.endswith(f" a second{told}, 32 x 32")
    assert (inputs.fps == pytest.approx(16, rel=0.1)) == (not told)
