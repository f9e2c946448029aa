"""The workshop: by name against a library, kept and resumed, and nothing is learned or adapted twice."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from customttt import checkpoint, compose, learn, media, pairs, workshop
from customttt.backbones import Backbone, open_base
from customttt.errors import AlreadyExistsError, BaseUnavailableError, NotFoundError, UsageError
from customttt.library import WEIGHTS, Library
from customttt.measure import rivals
from customttt.measure.rivals import Material
from customttt.progress import Progress, StoppedError
from customttt.recipe import Rival
from customttt.workshop import Workshop

README = (Path(__file__).parent.parent / "README.md").read_text()


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def backbone(tiny_random_base: Path) -> Backbone:
    return open_base(str(tiny_random_base), torch.device("cpu"))


@pytest.fixture
def told() -> list[str]:
    """Every sentence that was said, and every note of a report."""
    return []


@pytest.fixture
def shop(backbone: Backbone, home: Path, told: list[str]) -> Workshop:
    def report(progress: Progress) -> None:
        told.extend([progress.note] if progress.note else [])

    return Workshop(backbone, Accelerator(cpu=True), Library(home), report, told.append)


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("this must not be reached")


def kill_after(step: int, phase: str) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if (progress.step, progress.phase) == (step, phase):
            raise KilledError

    return report


def test_the_example_of_the_readme_goes_from_pictures_and_a_clip_to_videos(
    tiny_random_base: Path, pictures: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found
    assert len(found[1].splitlines()) <= 15
    shutil.copytree(pictures, tmp_path / "imgs")
    shutil.copy(clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    exec(found[1].replace('"tiny"', repr(str(tiny_random_base))), {})
    recipes = [media.read_recipe(tmp_path / f"mars-{seed}.mp4") for seed in range(3)]
    assert [recipe["seed"] for recipe in recipes] == [0, 1, 2]
    assert {concept.name for concept in Library().concepts()} == {"koala", "swimming"}


def test_what_was_learned_in_the_same_way_is_not_learned_again(
    shop: Workshop, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shop.learn_motion("swimming", clip, steps=1)
    monkeypatch.setattr(learn, "motion", refuse)
    assert shop.learn_motion("swimming", clip, steps=1) == first
    with pytest.raises(AlreadyExistsError):
        shop.learn_motion("swimming", clip, steps=2)


def test_a_killed_run_goes_on_and_ends_in_the_same_weights(
    shop: Workshop, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    kept: list[int] = []
    dying = replace(shop, report=kill_after(3, "learning the appearance"), kept=lambda: kept.append(1))
    with pytest.raises(KilledError):
        dying.learn_appearance("koala", [pictures], steps=4)
    assert len(kept) == 3
    steps: list[tuple[str, int]] = []
    resumed = replace(shop, report=lambda progress: steps.append((progress.phase, progress.step))).learn_appearance(
        "koala", [pictures], steps=4
    )
    assert steps[:3] == [("learning the appearance", 3), ("learning the appearance", 4), ("denoising", 1)]
    whole = replace(shop, library=Library(tmp_path / "other")).learn_appearance("koala", [pictures], steps=4)
    assert resumed.files == whole.files


@pytest.mark.usefixtures("learned")
def test_test_time_training_is_done_once_for_all_seeds(
    shop: Workshop, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = shop.recipe("koala", "swimming", "on Mars")
    first = shop.compose(recipe)
    monkeypatch.setattr(compose, "adapt", refuse)
    assert np.array_equal(shop.compose(recipe), first)
    assert told == ["Test-time training: done for these before; its result is used again."]
    assert not np.array_equal(shop.compose(recipe.with_seed(1)), first)


@pytest.mark.usefixtures("learned")
def test_a_recipe_alone_knows_its_concepts_by_their_weights(shop: Workshop) -> None:
    recipe = shop.recipe("koala", "swimming")
    shop.library.rename("koala", "bear")
    assert pairs.of_recipe(shop.library, recipe).appearance.name == "bear"
    shop.library.remove("bear")
    with pytest.raises(NotFoundError, match="The video was made with the appearance 'koala'"):
        shop.compose(recipe)


@pytest.mark.usefixtures("learned")
def test_of_several_copies_the_one_of_the_recipe_s_base_is_taken(shop: Workshop) -> None:
    recipe, weights = shop.recipe("koala", "swimming"), shop.library.weights("koala")
    for name, fingerprint in (("a", "f00d"), ("b", recipe.base_fingerprint)):
        concept = shop.library.get("koala").model_copy(update={"name": name, "base_fingerprint": fingerprint})
        shop.library.add(concept, lambda folder: shutil.copy(weights, folder / WEIGHTS))
    assert pairs.of_recipe(shop.library, recipe).appearance.name == "koala"
    shop.library.remove("koala")
    assert pairs.of_recipe(shop.library, recipe).appearance.name == "b"


@pytest.mark.usefixtures("learned")
def test_concepts_of_another_base_are_refused(shop: Workshop, backbone: Backbone) -> None:
    pair = pairs.named(shop.library, "koala", "swimming")
    with pytest.raises(BaseUnavailableError, match=r"learned on .*, not on 'tiny'"):
        pair.recipe("on Mars", "tiny", "f00d", backbone.defaults)
    with pytest.raises(BaseUnavailableError, match="as it was before it changed"):
        pair.recipe("on Mars", backbone.name, "f00d", backbone.defaults)


@pytest.mark.usefixtures("learned")
def test_diffdirector_takes_the_subject_that_full_has_learned(
    shop: Workshop, backbone: Backbone, pictures: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = backbone.defaults.sample
    material = Material(
        shop.library.get("koala"), shop.library.get("swimming"), media.read_pictures([pictures], sample.size),
        media.read_clip(clip, sample.num_frames, sample.fps, sample.size), backbone.defaults,
    )  # fmt: skip
    rival = Rival("diffdirector", material.key("diffdirector"))
    with pytest.raises(UsageError, match="what that learned is not in this library"):
        shop.teach(rival)
    alone = shop.teach(rival, material)
    shutil.rmtree(shop.library.path() / "adapted")
    shop.teach(Rival("full", material.key("full")), material)
    monkeypatch.setattr(rivals.RivalLesson, "subject", refuse)
    after = shop.teach(rival, material)
    for kind, one in alone.loras.items():
        assert all(torch.equal(one[key], after.loras[kind][key]) for key in one)
    monkeypatch.setattr(rivals, "teach", refuse)
    assert shop.teach(rival).loras["motion"].keys() == after.loras["motion"].keys()


def test_a_stopped_run_keeps_its_last_step_and_being_looked_at_changes_nothing(
    shop: Workshop, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the clock: it is kept when it is stopped, and goes on to the bits of a run that nobody watched."""
    monkeypatch.setattr(workshop, "GLANCE_SECONDS", 0.0)
    monkeypatch.setattr(workshop.time, "monotonic", lambda: 0.0)
    done: list[int] = []
    seen: list[media.Frames] = []
    watched = replace(
        shop, report=lambda progress: done.append(progress.step), glance=seen.append, stop=lambda: len(done) == 3
    )
    with pytest.raises(StoppedError):
        watched.learn_motion("swimming", clip, steps=6)
    assert done == [1, 2, 3]
    assert [one.shape for one in seen] == [(4, 64, 64, 3)] * 3
    assert not np.array_equal(seen[0], seen[2])
    on = replace(watched, stop=lambda: False).learn_motion("swimming", clip, steps=6)
    assert done[3:6] == [4, 5, 6]
    whole = replace(shop, library=Library(tmp_path / "other")).learn_motion("swimming", clip, steps=6)
    assert on.files == whole.files
