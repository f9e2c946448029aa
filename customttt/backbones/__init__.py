"""Base models by family: one file a family. `interface` says what every one offers; here a base is found and opened."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from customttt import machine
from customttt.backbones import hub
from customttt.backbones.interface import (
    Backbone,
    Place,
    PromptEmbeds,
    WordEmbedding,
    autocast,
    computing,
    precision,
)
from customttt.config import Defaults
from customttt.errors import BaseUnavailableError, UsageError

if TYPE_CHECKING:
    from customttt.backbones.family import Family, NamedBase

__all__ = [
    "Backbone", "Place", "PromptEmbeds", "WordEmbedding", "autocast", "check_at_hand", "check_subjects", "choose_base",
    "computing", "defaults", "families", "family_of", "identify", "is_local", "is_square", "known_bases", "locate",
    "open_base", "own_settings", "places", "precision", "pull", "sketch",
]  # fmt: skip

PREFERRED, FALLBACK = "animatediff", "tiny"
"""The base that is chosen where the GPU is large enough, and elsewhere."""
DEFAULTS_FILE = "customttt.json"
"""In a base's folder: its own settings in place of its family's recipe. `tiny` has one, and any folder may."""


def identify(base: str) -> str:
    """The fingerprint of a base without loading it. Raises BaseUnavailableError."""
    return _fingerprint(locate(base))


def defaults(base: str) -> Defaults:
    """A base's own settings, read without loading it. Raises BaseUnavailableError."""
    origin = locate(base)
    return _defaults(origin, family_of(origin))


def is_square(base: str) -> bool:
    """Whether a base makes squares alone. Raises BaseUnavailableError."""
    known = locate(base).known
    return known is not None and known.square


def places(base: str) -> dict[str, Place]:
    """What a LoRA can wrap in a base's network, by name, read without loading weights. Raises BaseUnavailableError."""
    origin = locate(base)
    family = family_of(origin)
    return family.places(_config(origin), _outline(origin, family), base)


def open_base(base: str, device: torch.device) -> Backbone:
    """Load a base: one with a name, a folder in diffusers format, or a hub id. Raises BaseUnavailableError."""
    origin = locate(base)
    family = family_of(origin)
    settings = _defaults(origin, family)
    folder = _whole(origin.folder, family) if origin.folder else hub.fetch(_repositories(origin, family)[0])
    return family.load(folder, base, _fingerprint(origin), settings, device)


def sketch(base: str, device: torch.device) -> Backbone:
    """A base as it would be on `device`, with all shapes and no weights, on the meta device.

    The hub is asked for configurations alone, and not where a base has a name. Raises BaseUnavailableError.
    """
    origin = locate(base)
    family = family_of(origin)
    config = origin.known.architecture if origin.known and origin.known.architecture else _config(origin)
    return family.sketch(config, _outline(origin, family), base, _defaults(origin, family), device)


def check_at_hand(base: str) -> None:
    """Raises BaseUnavailableError where a base is not here and the hub does not answer for it."""
    origin = locate(base)
    for repository in _repositories(origin, family_of(origin)):
        if not hub.cached(repository):
            hub.fetch_config(repository)


def pull(base: str, notify: hub.Notify = hub.nobody) -> list[Path]:
    """Download all that a base needs, as far as it is not here, and return its folders. Raises BaseUnavailableError."""
    origin = locate(base)
    family = family_of(origin)
    if origin.folder:
        return [_whole(origin.folder, family)]
    companions = () if origin.known else family.companions(_config(origin))
    return [hub.fetch(repository, notify) for repository in (*_repositories(origin, family), *companions)]


def _repositories(origin: Origin, family: type[Family]) -> tuple[hub.Repository, ...]:
    """What is downloaded: of a base without a name, the parts that its family has."""
    if origin.known:
        return origin.repositories
    return tuple(replace(one, parts=family.PARTS, extra=family.EXTRA_PARTS) for one in origin.repositories)


def _outline(origin: Origin, family: type[Family]) -> Path | None:
    """A folder in which at least a base's configurations are; None where its architecture is known without."""
    if origin.folder or origin.known or not family.CONFIGS:
        return origin.folder
    repository = origin.repositories[0]
    paths = [hub.fetch_config(repository, (name,)) for name in family.CONFIGS]
    with suppress(BaseUnavailableError):  # a repository need not have it
        hub.fetch_config(repository, (hub.INDEX,))
    return paths[0].parents[1]


def _whole(folder: Path, family: type[Family]) -> Path:
    if part := hub.missing_part(folder, family.PARTS, family.EXTRA_PARTS):
        raise BaseUnavailableError(f"No base model in {folder}: {part} is missing; give a diffusers folder.")
    return folder


def choose_base(asked: str | None) -> tuple[str, str]:
    """(base, why): what was asked for, or CUSTOMTTT_BASE says, a folder by its whole path, else what this machine can
    carry."""
    named, why = (asked, "as asked") if asked else (os.environ.get("CUSTOMTTT_BASE"), "as CUSTOMTTT_BASE says")
    if named:
        is_name = not is_local(named) or named in known_bases()
        return named if is_name else str(Path(named).expanduser().absolute()), why
    need = known_bases()[PREFERRED].memory
    if any(gpu.memory >= need for gpu in machine.gpus()[:1]):
        return PREFERRED, f"a CUDA GPU with at least {need / 1e9:.0f} GB is here"
    return FALLBACK, f"no CUDA GPU with at least {need / 1e9:.0f} GB is here"


@dataclass(frozen=True)
class Origin:
    """Where a base's files are, or where they are to come from."""

    base: str
    folder: Path | None = None
    repositories: tuple[hub.Repository, ...] = ()
    known: NamedBase | None = None


def locate(base: str) -> Origin:
    """What a base's name means. Raises BaseUnavailableError."""
    if known := known_bases().get(base):
        return Origin(base, known.folder, known.repositories, known)
    if is_local(base):
        folder = Path(base).expanduser()
        if not any((folder / name).is_file() for name in _network_configs()):
            expected = " or ".join(_network_configs())
            raise BaseUnavailableError(f"No base model in {folder}: {expected} is missing; give a diffusers folder.")
        return Origin(base, folder)
    if base.count("/") != 1:
        names = ", ".join(known_bases())
        raise BaseUnavailableError(
            f"There is no base {base!r}; give {names}, a diffusers folder, or a hub id as owner/name."
        )
    return Origin(base, repositories=(hub.Repository(base),))


def is_local(base: str) -> bool:
    """Whether a base name means a folder on this machine."""
    return base.startswith((".", "/", "~")) or Path(base).is_dir()


def families() -> tuple[type[Family], ...]:
    """Every family; a new one is a file, and a name here."""
    from customttt.backbones.animatediff import AnimateDiff
    from customttt.backbones.unet3d import UNet3D
    from customttt.backbones.wan import Wan

    return AnimateDiff, UNet3D, Wan


def known_bases() -> dict[str, NamedBase]:
    """The bases that have a name."""
    return {known.name: known for family in families() for known in family.NAMED}


def check_subjects(base: str, number: int) -> None:
    """Raise UsageError for more subjects in one video than a base is known to draw."""
    known = known_bases().get(base)
    if known and 0 < known.subjects < number:
        raise UsageError(
            f"The video has {number} subjects, and {base} has learned to draw {known.subjects}; leave out "
            f"{number - known.subjects} of them, or use concepts of another base."
        )


def _network_configs() -> list[str]:
    """Where the network's config.json may be in a base's folder."""
    return list(dict.fromkeys(f"{family.FOLDER}/config.json" for family in families()))


def family_of(origin: Origin) -> type[Family]:
    """The family that loads a base: by its name, else by its network's class. Raises BaseUnavailableError."""
    architecture = str(_config(origin).get("_class_name", "nameless model")) if origin.known is None else ""
    for family in families():
        if origin.known in family.NAMED or architecture in family.NETWORKS:
            return family
    expected = ", ".join(name for family in families() for name in family.NETWORKS)
    raise BaseUnavailableError(f"{origin.base!r} is a {architecture}, which is no base here; give one of {expected}.")


def _config(origin: Origin) -> dict[str, Any]:
    """Of its network."""
    from customttt.backbones.family import read_config

    if origin.folder is None:
        return read_config(hub.fetch_config(origin.repositories[0], () if origin.known else _network_configs()))
    paths = (origin.folder / name for name in _network_configs())
    return read_config(next(path for path in paths if path.is_file()))


def _defaults(origin: Origin, family: type[Family]) -> Defaults:
    if origin.known and origin.known.defaults:
        return origin.known.defaults
    own = _own_settings(origin)
    return Defaults.from_dict(own) if own else family.recipe(_config(origin))


def own_settings(base: str) -> dict[str, Any]:
    """What a base's folder says of it in DEFAULTS_FILE, empty where it says nothing. Raises BaseUnavailableError."""
    return _own_settings(locate(base))


def _own_settings(origin: Origin) -> dict[str, Any]:
    path = origin.folder and origin.folder / DEFAULTS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path and path.is_file() else {}


def _fingerprint(origin: Origin) -> str:
    """A digest of a folder's configurations and of head, tail and size of its weights: whole files take minutes.

    What comes from the hub is known by its names and commits. A base's own settings are left out: what was learned
    with others fits it all the same.
    """
    digest = hashlib.sha256()
    if origin.folder is None:
        digest.update(" ".join(map(str, origin.repositories)).encode())
        return digest.hexdigest()[:16]
    parts = (path for path in origin.folder.rglob("*") if path.suffix in hub.SUFFIXES and path.name != DEFAULTS_FILE)
    for path in sorted(parts):
        digest.update(f"{path.relative_to(origin.folder).as_posix()} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(path.stat().st_size - 2**20, 0))
            digest.update(file.read())
    return digest.hexdigest()[:16]
