"""What a grid is to hold, from a TOML or JSON file: appearances, motions, prompts, seeds, and what is learned first."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from customttt import wish
from customttt.concept import check_name
from customttt.errors import NotFoundError, UsageError
from customttt.limits import MAX_GRID_FILE, MAX_SEED
from customttt.text import parsed
from customttt.wish import Settings

All = Literal["all"]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Learning(_Strict):
    """How one concept is learned; what is None is the base's own."""

    prompt: str = ""
    steps: int | None = None
    rank: int | None = None
    learning_rate: float | None = None
    layers: list[int] | None = None
    seed: Seed | None = None

    def changes(self) -> dict[str, Any]:
        """Fields of TrainConfig."""
        layers = tuple(sorted({*self.layers})) if self.layers else None
        given = self.model_dump(include={"steps", "rank", "learning_rate", "seed"})
        return {**given, "layers": layers}


class AppearanceLesson(Learning):
    """As of `learn-appearance`."""

    images: str | list[str]
    """Files or folders, from where the file of the grid is."""
    noun: str = ""
    fit: bool = False

    @property
    def phrase(self) -> str:
        return self.noun


class MotionLesson(Learning):
    """As of `learn-motion`."""

    clip: str
    phrase: str = ""
    start: float = 0.0
    end: float | None = None
    frames: int | None = None
    aspect: str | None = None


class Lessons(_Strict):
    """By the name that each concept gets."""

    appearance: dict[str, AppearanceLesson] = {}
    motion: dict[str, MotionLesson] = {}


class GridSpec(_Strict):
    """What a grid is to hold."""

    appearances: All | list[str] | None = None
    """Names; None: those that are learned first, and where there are none, all that the library has."""
    motions: All | list[str] | None = None
    prompts: Annotated[list[str], Field(min_length=1)] = [""]
    seeds: Seed | list[Seed] = 1
    """So many from 0, or these."""
    further: Annotated[list[str], Field(alias="with")] = []
    """Subjects that are in every video, too: "dog:jumping", or "cat" of which the prompts say what it does."""
    then: list[str] = []
    """Motions that come after the first, in every video."""
    base: str | None = None
    settings: Settings = Settings()
    learn: Lessons = Lessons()
    folder: Path = Path()
    """From where the paths of pictures and clips are."""

    def names(self, kind: Literal["appearance", "motion"]) -> list[str] | None:
        """Those of a kind, each once; None for all that the library has, but for what every video has."""
        asked, beside = getattr(self, f"{kind}s"), self.beside(kind)
        taught = [name for name in getattr(self.learn, kind) if name not in beside]
        if asked is None and taught:
            return taught
        return None if asked in (None, "all") else list(dict.fromkeys(asked))

    @property
    def others(self) -> list[tuple[str, str | None]]:
        """(appearance, motion or None) of each further subject. Raises UsageError."""
        return wish.others(self.further)

    def beside(self, kind: Literal["appearance", "motion"]) -> list[str]:
        """The concepts of a kind that every video has, beside those it is named by. Raises UsageError."""
        names = [looks if kind == "appearance" else moves for looks, moves in self.others]
        names += self.then if kind == "motion" else []
        return [name for name in dict.fromkeys(names) if name]

    def all_seeds(self) -> list[int]:
        """Raises UsageError where there is none."""
        seeds = list(range(self.seeds)) if isinstance(self.seeds, int) else list(dict.fromkeys(self.seeds))
        if not seeds:
            raise UsageError("The grid has no seeds; give 1 or more.")
        return seeds

    def how_many_seeds(self) -> int:
        """Without counting them out."""
        return self.seeds if isinstance(self.seeds, int) else len(self.seeds)

    def paths(self, given: str | list[str]) -> list[Path]:
        """Paths as they are from here."""
        return [self.folder / Path(one).expanduser() for one in ([given] if isinstance(given, str) else given)]


def read(path: Path) -> GridSpec:
    """The grid of a file. Raises NotFoundError or UsageError."""
    text = _read_text(path, "give a grid as .toml or .json", "a grid needs fewer")
    try:
        data = parsed(text, MAX_GRID_FILE) if path.suffix.lower() == ".json" else tomllib.loads(text)
        spec = GridSpec.model_validate({**dict(data), "folder": path.absolute().parent})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "constrained-str")
        raise UsageError(f"'{path}': its '{field}' cannot be used: {first['msg']}.") from error
    except (ValueError, TypeError, RecursionError) as error:  # of tomllib and parsed, too
        raise UsageError(f"'{path}' is no grid ({' '.join(str(error).split())[:200]}).") from error
    for name in (*spec.learn.appearance, *spec.learn.motion):
        check_name(name)
    return spec


def read_prompts(path: Path) -> list[str]:
    """One a line; empty lines are passed over. Raises NotFoundError or UsageError."""
    text = _read_text(path, "give one with a prompt a line", "prompts need fewer")
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise UsageError(f"'{path}' has no prompts; write one a line.")
    return prompts


def _read_text(path: Path, way_out: str, fewer: str) -> str:
    """A file of at most MAX_GRID_FILE characters. Raises NotFoundError or UsageError, which end in what to do."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_GRID_FILE + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file '{path}'; {way_out}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' cannot be read as text ({error}); {way_out}.") from error
    if len(text) > MAX_GRID_FILE:
        raise UsageError(f"'{path}' has more than {MAX_GRID_FILE:,} characters; {fewer}.")
    return text
