"""The model hub: what is here already, whether it answers, and getting what a base needs. No pickles, only safetensors.

Everything goes through the hub's own client and its cache, so other programs share the files, a broken download keeps
the files that came whole, and HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and HF_TOKEN mean what they mean elsewhere.
"""

from __future__ import annotations

import errno
import json
import re
import ssl
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, getproxies, urlopen

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from customttt import machine
from customttt.errors import BaseUnavailableError

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""Folders of a base in diffusers format, unless its family says otherwise; its scheduler may be missing."""
SUFFIXES = {".json", ".txt", ".safetensors"}
INDEX = "model_index.json"
"""What a pipeline of diffusers says of its parts."""
PATIENCE = 3.0
"""Seconds that the hub has to answer at all."""

Notify = Callable[[str, int, int], None]
"""Called before every file of a download: (name, bytes that are here, bytes in all)."""


@dataclass(frozen=True)
class Repository:
    """A repository on the hub."""

    id: str
    revision: str | None = None
    """A commit; None is the newest."""
    parts: tuple[str, ...] = PARTS
    """Folders of which the files are needed; "" is the root."""
    extra: tuple[str, ...] = ()
    """Folders that are needed, too, where it has them, and which model_index.json tells."""

    def __str__(self) -> str:
        return f"{self.id}@{self.revision or 'main'}"


def nobody(_name: str, _here: int, _total: int) -> None:
    """Tell nobody."""


def missing_part(folder: Path, parts: Iterable[str] = PARTS, extra: Iterable[str] = ()) -> str | None:
    """The first thing that a base's folder lacks, None where it is whole; `extra` may be missing, but not halves."""
    for part in (*parts, *(part for part in extra if has_part(folder, part))):
        home = folder / part
        if part == "tokenizer":
            if not ((home / "vocab.json").is_file() or (home / "tokenizer.json").is_file()):
                return f"{part}/vocab.json"
        elif part != "scheduler":
            if not (home / "config.json").is_file():
                return f"{part}/config.json".lstrip("/")
            if not _has_weights(home):
                return f"{part}/*.safetensors".lstrip("/")
    return None


def index(folder: Path) -> dict[str, Any]:
    """A folder's model_index.json; empty where it has none that can be read."""
    path = folder / INDEX
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError):
        return {}


def has_part(folder: Path, part: str) -> bool:
    """Whether a base has a part, which may not be here yet: its index then names its library and its class."""
    named = index(folder).get(part)
    return (folder / part).is_dir() or (isinstance(named, list) and any(named))


def _has_weights(folder: Path) -> bool:
    for index in folder.glob("*.safetensors.index.json"):
        return all(
            (folder / shard).is_file() for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        )
    return any(folder.glob("*.safetensors"))


def variant(folder: Path) -> str | None:
    """Which weights a folder has: None for plain ones, fp16 where it has only those."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def cached(repository: Repository) -> Path | None:
    """Its folder in the hub's cache if all that is needed is there. Asks no network."""
    first = repository.parts[0]
    config = _cached_file(repository, f"{first}/config.json".lstrip("/"))
    if config is None:
        return None
    folder = config.parents[1] if first else config.parent
    return None if missing_part(folder, repository.parts, repository.extra) else folder


def _cached_file(repository: Repository, name: str) -> Path | None:
    path = try_to_load_from_cache(repository.id, name, revision=repository.revision)
    return Path(path) if isinstance(path, str) else None


def address() -> str:
    """Where the hub is: HF_ENDPOINT may say so."""
    return str(constants.ENDPOINT)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return bool(constants.HF_HUB_OFFLINE)


def obstacle() -> str | None:
    """Why the hub cannot even be asked, as far as this machine's settings tell."""
    if offline():
        return "HF_HUB_OFFLINE is set"
    if not re.match(r"https?://[^/]", constants.ENDPOINT):
        return f"HF_ENDPOINT is {constants.ENDPOINT!r}, no address that begins with https://; unset it"
    if _socks() and find_spec("socksio") is None:
        return "the network is behind a SOCKS proxy, which needs one more package: pip install socksio"
    return None


def _socks() -> bool:
    return any(proxy.startswith("socks") for name, proxy in getproxies().items() if name in ("http", "https", "all"))


def answers(seconds: float = PATIENCE) -> bool:
    """Whether the hub answers within `seconds`; a thread waits for it, as looking up a name knows no time limit.

    Behind a SOCKS proxy, which this simple knock does not know, it is taken for granted.
    """
    if obstacle():
        return False
    if _socks():
        return True
    heard = Event()

    def knock() -> None:
        try:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=seconds).close()
        except HTTPError:
            heard.set()  # it refused, so it is there
        except URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                heard.set()  # somebody is there; the hub's own client brings its own certificates
        except (OSError, ValueError):
            pass
        else:
            heard.set()

    thread = Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    return heard.is_set()


def fetch(repository: Repository, notify: Notify = nobody) -> Path:
    """Its folder, downloaded as far as it is not here. Raises BaseUnavailableError."""
    if here := cached(repository):
        return here
    _asking(repository, lambda: _download(repository, notify))
    if here := cached(repository):
        return here
    raise BaseUnavailableError(f"'{repository.id}' did not arrive whole; type 'customttt bases pull' once more.")


def fetch_config(repository: Repository, names: Sequence[str] = ()) -> Path:
    """Its config.json, which tells the architecture before gigabytes come: the first of these that it has.

    By default the one in its first part. Raises BaseUnavailableError.
    """
    wanted = names or (f"{repository.parts[0]}/config.json".lstrip("/"),)
    if here := next(filter(None, (_cached_file(repository, name) for name in wanted)), None):
        return here
    path: list[str] = []
    _asking(repository, lambda: path.append(_first_of(repository, wanted)))
    return Path(path[0])


def _first_of(repository: Repository, names: Sequence[str]) -> str:
    for name in names:
        try:
            return _get(repository, name)
        except LocalEntryNotFoundError:  # which is a broken connection, to the hub's client
            raise
        except EntryNotFoundError:
            continue
    raise BaseUnavailableError(
        f"'{repository.id}' has no {' or '.join(names)}, so it is no base; give a repository in diffusers format."
    )


def _asking(repository: Repository, ask: Callable[[], object]) -> None:
    """Ask the hub, and turn all that can go wrong into one sentence."""
    name = repository.id
    if not answers():
        why = obstacle() or f"the model hub does not answer ({constants.ENDPOINT})"
        raise BaseUnavailableError(f"'{name}' is not downloaded, and {why}; use --base tiny, or go online once.")
    try:
        ask()
    except BaseUnavailableError:
        raise
    except GatedRepoError as error:
        raise BaseUnavailableError(
            f"'{name}' is gated; accept its licence at {constants.ENDPOINT}/{name}, then type 'hf auth login'."
        ) from error
    except RevisionNotFoundError as error:
        raise BaseUnavailableError(f"'{name}' has no revision {repository.revision!r} on the hub any more.") from error
    except RepositoryNotFoundError as error:
        raise BaseUnavailableError(
            f"There is no '{name}' on the hub, or it is private; check the name, or type 'hf auth login'."
        ) from error
    except Exception as error:  # of the HTTP library below the hub's client, which differs by its version
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise _no_space(name) from error
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> BaseUnavailableError:
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return BaseUnavailableError(f"'{name}' cannot be downloaded ({reason}); try once more: whole files are kept.")


def _get(repository: Repository, name: str) -> str:
    return str(hf_hub_download(repository.id, name, revision=repository.revision))


def _download(repository: Repository, notify: Notify) -> None:
    info = HfApi().model_info(repository.id, revision=repository.revision, files_metadata=True, timeout=10)
    listed = {file.rfilename: file.size or 0 for file in info.siblings or []}
    parts = (*repository.parts, *(part for part in repository.extra if f"{part}/config.json" in listed))
    sizes = {name: listed[name] for name in needed(listed, parts)}
    if repository.extra and INDEX in listed:
        sizes[INDEX] = listed[INDEX]
    _check_safetensors(repository.id, parts, sizes)
    missing = [name for name in sizes if _cached_file(repository, name) is None]
    total, here = sum(sizes.values()), sum(size for name, size in sizes.items() if name not in missing)
    _check_space(repository.id, total - here)
    for name in sorted(missing, key=lambda name: sizes[name]):  # weights last: where they are, all is
        notify(name, here, total)
        _get(repository, name)
        here += sizes[name]


def _check_safetensors(repository: str, parts: Iterable[str], names: Collection[str]) -> None:
    having = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")}
    for part in parts:
        if part not in ("tokenizer", "scheduler") and part not in having:
            raise BaseUnavailableError(
                f"'{repository}' has no {part}/*.safetensors, and formats that hold programs are not read."
            )


def needed(names: Collection[str], parts: Collection[str]) -> list[str]:
    """Which files of a repository a base needs: no pickles, and half precision where there is a choice."""
    kept = [
        name
        for name in names
        if name.rpartition("/")[0] in parts and Path(name).suffix in SUFFIXES and not _unwanted(Path(name).name)
    ]
    return [name for name in kept if name.removesuffix(".safetensors") + ".fp16.safetensors" not in kept]


def _unwanted(name: str) -> bool:
    return "non_ema" in name or ".fp16-" in name or name == INDEX


def _check_space(name: str, size: int) -> None:
    if machine.free_disk(Path(constants.HF_HUB_CACHE)) < size:
        raise _no_space(name, size)


def _no_space(name: str, size: int | None = None) -> BaseUnavailableError:
    need = "" if size is None else f" for its {size / 1e9:.1f} GB"
    return BaseUnavailableError(
        f"'{name}' cannot be downloaded: {constants.HF_HUB_CACHE} has no room{need}; free some, or set HF_HOME."
    )
