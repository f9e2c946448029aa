"""The commands export and import: one file out, one concept in, and a clear sentence for everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from material import assert_one_sentence, run, snapshot
from torch import ones
from travel import LAYERS, NAMES, add, make_weights, pickled, safetensors

from customttt.interchange.exchange import Home
from customttt.library import Library


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def library(travel_home: Home) -> Library:
    """A library that holds `koala` and `swimming`."""
    for kind in LAYERS:
        add(Library(), travel_home, kind)
    return Library()


@pytest.mark.usefixtures("library")
def test_a_concept_travels(here: Path, home: Path, tmp_path: Path) -> None:
    done = run("export", "koala")
    assert (done.exit_code, done.stdout) == (0, "koala.customttt\n"), done.output
    assert [path.name for path in here.iterdir()] == ["koala.customttt"]
    elsewhere = {"CUSTOMTTT_HOME": str(tmp_path / "elsewhere")}
    done = run("import", "koala.customttt", env=elsewhere)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'elsewhere' / 'concepts' / 'koala'}\n"), done.output
    assert "'koala' was learned on it" in done.stderr
    files = {name: content for name, content in snapshot(home).items() if "koala" in name}
    assert snapshot(tmp_path / "elsewhere") == files, "byte for byte"
    assert "koala  appearance  purple koala" in run("list", env=elsewhere).stdout
    assert run("verify", env=elsewhere).exit_code == 0


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_foreign_form_travels_under_another_name(library: Library, travel_home: Home, here: Path, form: str) -> None:
    done = run("export", "swimming", "--kind", "motion", "--format", form, "-o", "out/lora.safetensors")
    assert (done.exit_code, done.stdout) == (0, "out/lora.safetensors\n"), done.output
    done = run("import", here / "out" / "lora.safetensors", "--name", "diving", "--base", travel_home.base)
    assert done.exit_code == 0, done.output
    assert [concept.name for concept in library.concepts("motion")] == ["diving", "swimming"]
    shown = run("show", "diving")
    for words in ("purple swimming", "by another program; imported", "lora.safetensors"):
        assert words in shown.stdout
    assert json.loads(run("show", "diving", "--json").stdout)["layers"] == [2, 5]


def test_what_is_left_out_is_said_in_one_line(travel_home: Home, here: Path) -> None:
    text = {f"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{role}.weight": ones(4, 4) for role in ("down", "up")}
    content = safetensors(make_weights(travel_home, "appearance") | text)
    (here / "koala.safetensors").write_bytes(content)
    done = run("import", "koala.safetensors", "--base", travel_home.base)
    assert done.exit_code == 0, done.output
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("warning"))
    assert line == "warning: 'koala.safetensors' is imported without 2 keys of the text encoder."


@pytest.mark.usefixtures("here")
def test_an_imported_concept_composes(library: Library, travel_home: Home) -> None:
    for name in NAMES.values():
        assert run("export", name, "--format", "diffusers").exit_code == 0
        done = run("import", f"{name}.safetensors", "--name", f"my-{name}", "--base", travel_home.base)
        assert done.exit_code == 0, done.output
    done = run("compose", "my-koala", "my-swimming", "on Mars", "--no-ttt", "-o", "ours.mp4")
    assert done.exit_code == 0, done.output
    assert len(library.concepts()) == 4


@pytest.mark.usefixtures("library")
def test_what_is_taken_is_not_replaced_by_chance(here: Path) -> None:
    assert run("export", "koala").exit_code == 0
    assert_one_sentence(run("export", "koala"), 4, "--output")
    assert_one_sentence(run("export", "koala", "-o", str(here)), 4, "--output")
    assert run("export", "koala", "-o", "koala.customttt").exit_code == 0
    before = snapshot(Library().root)
    assert_one_sentence(run("import", "koala.customttt"), 4, "--force")
    assert snapshot(Library().root) == before
    assert run("import", "koala.customttt", "--force").exit_code == 0


def test_a_concept_of_another_version_of_its_base_is_imported_only_if_asked(
    library: Library, travel_home: Home, here: Path
) -> None:
    assert run("export", "koala").exit_code == 0
    config = Path(travel_home.base) / "unet" / "config.json"
    text = config.read_text()
    try:
        config.write_text(text + " ")
        assert_one_sentence(run("import", here / "koala.customttt", "--name", "other"), 10, "--base")
        done = run("import", here / "koala.customttt", "--name", "other", "--base", travel_home.base)
        assert done.exit_code == 0, done.output
        assert "warning: 'koala' was learned on" in done.stderr
        assert library.get("other").base_fingerprint != library.get("koala").base_fingerprint
    finally:
        config.write_text(text)


def test_our_own_form_goes_to_its_base_whatever_the_environment_says(
    library: Library, travel_home: Home, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That says where to learn, and where to put what does not tell its base."""
    assert run("export", "koala").exit_code == 0
    monkeypatch.setenv("CUSTOMTTT_BASE", "tiny")
    assert run("import", here / "koala.customttt", "--name", "other").exit_code == 0
    assert library.get("other").base == travel_home.base


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["export", "koalla"], 3, "did you mean 'koala'?"),
        (["export", "koala", "--kind", "motion"], 2, "is an appearance"),
        (["export", "koala", "-o", "/proc/nowhere/koala"], 11, "cannot be written"),
        (["export", "koala", "-o", "x" * 256], 2, "of 256 bytes"),
        (["import", "nothing.customttt"], 3, "There is no file"),
        (["import", "."], 3, "no file adapter_model.safetensors in the folder"),
        (["import", "foreign.safetensors", "--name", "a/b"], 2, "cannot be a concept's name"),
        (["import", "foreign lora.safetensors"], 2, "cannot be a concept's name"),
        (["import", "foreign.safetensors", "--name", "KOALA"], 4, "case only"),
        (["import", "foreign.safetensors", "--kind", "motion"], 2, "holds no motion"),
        (["import", "foreign.safetensors", "--base", "nowhere"], 10, "no base 'nowhere'"),
        (["import", "foreign.safetensors", "--base", "tiny"], 6, "for the base 'tiny'"),
        (["import", "foreign.pt"], 2, "--allow-pickle"),
        (["import", "text.pt", "--allow-pickle"], 6, "neither a concept nor safetensors"),
    ],
)
@pytest.mark.usefixtures("library")
def test_bad_input_is_one_sentence(
    travel_home: Home, here: Path, command: list[str], code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_weights(travel_home, "appearance")
    for name in ("foreign.safetensors", "foreign lora.safetensors"):
        (here / name).write_bytes(safetensors(weights))
    (here / "foreign.pt").write_bytes(pickled(weights))
    (here / "text.pt").write_text("This is no LoRA.\n")
    monkeypatch.setenv("CUSTOMTTT_BASE", travel_home.base)
    before = snapshot(Library().root), snapshot(here)
    assert_one_sentence(run(*command), code, words)
    assert (snapshot(Library().root), snapshot(here)) == before
