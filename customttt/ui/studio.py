"""What the page's forms ask for: checked at once, and done as tasks of a desk, with one base open at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

from customttt import backbones, media, pairs, previews, threads, workshop
from customttt.concept import Concept, Kind, check_name
from customttt.config import parse_aspect
from customttt.errors import CustomTTTError, MediaError, UsageError
from customttt.interchange import exchange, parcel
from customttt.interchange.exchange import Form
from customttt.learn import Inputs, Wording
from customttt.library import Library
from customttt.many import grid
from customttt.progress import Report, duration
from customttt.recipe import VideoRecipe, phrase_of, training_prompt
from customttt.ui.desk import Desk, DeskTask
from customttt.wish import Wish
from customttt.workshop import Plan, Workshop

FRAMES_OF_STRIP, STRIP_SIDE = 10, 96


@dataclass(frozen=True)
class LearningForm:
    """A form of learning."""

    kind: Kind
    name: str
    phrase: str = ""
    """What it is, or what is done; by default from the name."""
    prompt: str = ""
    base: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig; None leaves the base's."""
    force: bool = False
    """Replace a concept of that name."""


@dataclass
class Studio:
    """A library, a desk for what takes long, and folders: for videos, and a passing one for all else."""

    library: Library
    desk: Desk
    videos: Path
    base: str | None = None
    """Where a form names none."""
    cores: int = 0
    """CPU threads of what takes long; 0: as many as torch takes by itself."""
    passing: Path = field(default_factory=media.temporary)
    _open: dict[str, Workshop] = field(default_factory=dict)

    def close(self) -> None:
        """Leave nothing but the library and the videos."""
        shutil.rmtree(self.passing, ignore_errors=True)

    # -- learning

    def pictures(self, files: Sequence[str], base: str = "") -> tuple[list[media.Picture], list[str]]:
        """What is taken of uploaded pictures and their captions, and what is not, in sentences.

        Raises MediaError or BaseUnavailableError.
        """
        if not files:
            raise MediaError("There are no pictures yet; drop 3 to 8 of one subject, and their .txt captions.")
        sides = backbones.defaults(self._base(base)).sample.sides
        with tempfile.TemporaryDirectory(dir=self.passing) as parent:
            folder = Path(parent) / "your pictures"  # side by side, so that a caption is beside its picture
            folder.mkdir()
            for file in map(Path, files):
                shutil.copyfile(file, _free(folder / file.name))
            said = [one.replace(f"{folder}", folder.name) for one in media.passed_over([folder])]
            try:
                return media.read_pictures([folder], sides), said
            except MediaError as error:
                raise MediaError(str(error).replace(f"{folder}", folder.name)) from error

    def strip(self, clip: str) -> media.FilmStrip:
        """Frames of a whole uploaded clip. Raises MediaError."""
        return _strip(clip)

    def clip(self, file: str, start: float, end: float | None, base: str = "", aspect: str | None = None) -> media.Clip:
        """What is taken of an uploaded clip, in its own shape or as asked.

        Raises MediaError, UsageError or BaseUnavailableError.
        """
        if not file:
            raise MediaError("There is no clip yet; drop one of one movement.")
        name = self._base(base)
        sample = workshop.for_clip(name, backbones.defaults(name).sample, file, parse_aspect(aspect))
        return media.read_clip(file, sample.num_frames, sample.fps, sample.sides, start, end)

    def learn(self, asked: LearningForm, inputs: Inputs) -> DeskTask:
        """Let a concept be learned. Raises, before it waits, whatever would stop it."""
        base = self._base(asked.base)
        check_name(asked.name)
        phrase = asked.phrase.strip() or phrase_of(asked.name)
        words = Wording(asked.name, phrase, asked.prompt.strip() or training_prompt(asked.kind, phrase))
        config = workshop.settings(self.library, base, asked.kind, asked.changes)
        plan = Plan(words, inputs, base, backbones.identify(base), config)
        plan.check()
        known = None if asked.force else plan.learned(self.library)
        if known is None:
            self.library.check_free(asked.name, asked.force)
            self.library.check_writable()
            backbones.check_at_hand(base)
        return self.desk.add(f"Learn the {asked.kind} '{asked.name}'", partial(self._learn, plan, asked.force))

    def _learn(self, plan: Plan, force: bool, task: DeskTask) -> str:
        shop = self._opened(plan.base, task, task.note)
        unread = shop.unread(plan.texts)

        def glance(frames: media.Frames) -> None:
            step = task.progress.step if task.progress else 0
            stem, fps = self.passing / f"glance-{task.number}", shop.backbone.defaults.sample.fps
            task.files = [(previews.write_shown(stem, frames, fps), f"after step {step}")]

        shop = replace(shop, glance=glance, stop=task.stopping)
        concept = shop.learn(plan, force=force, rung=plan.forecast().position)
        if not concept.previews:
            concept = shop.preview(plan, concept)
        folder = self.library.path(concept.name)
        task.files = [(folder / name, concept.prompt) for name in concept.previews[:1]]
        return f"'{concept.name}' is in the library; learning it took {duration(concept.seconds)}. {unread}".strip()

    # -- composing

    def recipe(
        self,
        appearance: str,
        motion: str,
        wish: Wish,
        others: Sequence[tuple[str, str | None]] = (),
        then: Sequence[str] = (),
    ) -> VideoRecipe:
        """The recipe of the first video, with further subjects, or motions after the first.

        Raises what cannot be composed, in a sentence.
        """
        if not appearance or not motion:
            raise UsageError("Choose an appearance and a motion; what is not there yet is learned on the first tabs.")
        wish.check()
        pair = pairs.named(self.library, appearance, motion, others, then)
        base = pair.appearance.base
        backbones.check_subjects(base, 1 + len(others))
        known = backbones.identify(base), backbones.defaults(base)
        recipe = replace(wish.again(pair.recipe(wish.prompt, base, *known)), threads=self.cores)
        recipe.check_frames()
        return recipe

    def compose(self, recipe: VideoRecipe, number: int = 1) -> DeskTask:
        """Let so many videos be made, from the recipe's seed on. Raises, before it waits, whatever would stop it."""
        backbones.check_at_hand(recipe.base)
        media.check_output(self.videos / "video.mp4")
        return self.desk.add(
            recipe.target_prompt, partial(self._compose, recipe, range(recipe.seed, recipe.seed + number))
        )

    def _compose(self, recipe: VideoRecipe, seeds: Sequence[int], task: DeskTask) -> str:
        shop = self._opened(recipe.base, task, task.note_or_stop)
        unread = shop.unread([("The prompt", recipe.target_prompt)])
        taught = shop.prepare(recipe)
        task.files = []
        for seed in seeds:
            one = recipe.with_seed(seed)
            names = f"{recipe.appearance.name}-{recipe.motion.name}-seed{seed}-{grid.name_of(one)[:12]}.mp4"
            shop.write(one, self.videos / names, taught)
            task.files = [*task.files, (self.videos / names, f"seed {seed}: {names}")]
        return f"In {self.videos.absolute()}. {unread}".strip()

    # -- keeping house

    def export(self, name: str, form: Form) -> Path:
        """Write a concept to a file that the page gives out. Raises what `exchange.export` does."""
        concept = self.library.get(name)
        path = self.passing / "exports" / (name + exchange.SUFFIX[form])
        exchange.export(self.library, concept, form, path)
        return path

    def admit(self, file: str, name: str = "", base: str = "", kind: Kind | None = None) -> tuple[Concept, list[str]]:
        """Add a concept from an uploaded file: that, and what is not as it stood there. Raises as an import does."""
        if not file:
            raise UsageError("There is no file to import yet; drop what an export or another program wrote.")
        opened = parcel.read(Path(file))
        home, _ = exchange.home_of(opened, base or None)
        arrival = exchange.admit(opened, home, name or None, kind)
        return arrival.add_to(self.library), list(arrival.notes)

    # -- below: how it is done

    def makes_shapes(self, base: str) -> bool:
        """Whether videos of a base can be other than squares; no, where it cannot be told."""
        try:
            return not backbones.is_square(self._base(base))
        except CustomTTTError:
            return False

    def _base(self, asked: str) -> str:
        return backbones.choose_base(asked or self.base)[0]

    def _opened(self, base: str, task: DeskTask, report: Report) -> Workshop:
        """The base, which stays open until another is needed."""
        threads.use(self.cores)  # of this thread: torch counts them for each
        if base not in self._open:
            self._open.clear()
            task.said = f"Opening {Path(base).name}."
            self._open[base] = Workshop.open(base, self.library)
        task.said = ""
        return replace(self._open[base], report=report, say=partial(setattr, task, "said"))


@lru_cache(8)  # as sliders move
def _strip(clip: str) -> media.FilmStrip:
    return media.read_strip(clip, FRAMES_OF_STRIP, STRIP_SIDE)


def _free(path: Path) -> Path:
    """A name in its folder that no other upload has: two folders may hold files of one name."""
    if not path.exists():
        return path
    return next(one for number in count(2) if not (one := path.with_stem(f"{path.stem}_{number}")).exists())
