"""A file that someone hands over as a concept: opened member by member, and nothing in it is believed.

Our own form is a zip whose comment, its last 64 bytes, is the sha256 of all bytes before it: any changed byte is found.
Nothing is ever extracted: members are read into memory when names, sizes and kinds have all been looked at. A PyTorch
file (`.pt`, `.ckpt`) holds a pickle: it is read only where that is allowed, and then weights only. PEFT's form is a
folder of weights and a configuration that says how strongly they act.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from customttt import lora
from customttt.concept import Concept
from customttt.errors import DamagedError, NotFoundError, UsageError
from customttt.interchange import pickles
from customttt.interchange.scales import CONFIG
from customttt.library import MANIFEST, WEIGHTS
from customttt.limits import MAX_CONFIG, MAX_HEADER, MAX_KEY, MAX_LORA, MAX_TENSORS
from customttt.recipe import NO_TEXT
from customttt.text import parsed

SEAL = 64
"""Bytes of the seal: hex digits of a sha256."""
IN_FOLDERS = (
    "adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin", "pytorch_lora_weights.bin",
)  # fmt: skip
"""What PEFT and diffusers call the weights in an adapter's folder."""
_ZIP, _ENTRY, _PICKLE = b"PK\x03\x04", b"PK\x01\x02", "data.pkl"
_OLD_PICKLES = 5
"""That stand one after the other in PyTorch's files before they were archives."""
_OLD_PICKLE = re.compile(rb"\x80.\x8a\nl\xfc\x9cF\xf9 j\xa8P", re.DOTALL)
"""How PyTorch's files began before they were archives: a number of ten bytes, pickled."""
_BROKEN = (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, KeyError, struct.error)


@dataclass(frozen=True)
class Parcel:
    """A file as it came in, not yet held against a base."""

    file: str
    sha256: str
    tensors: lora.Weights | list[Tensor]
    """By the file's own names, or in the file's order where it has none."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    concept: Concept | None = None
    """What our own form says of it."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """The entry's files, of our own form."""
    config: str = ""
    """What PEFT wrote beside the weights; empty if nothing."""
    folder: str = ""
    """Whose weights they are, where a folder was given."""

    @property
    def name(self) -> str:
        return self.concept.name if self.concept else self.folder or Path(self.file).stem


def seal(content: bytes) -> bytes:
    """What stands at the end of our own form, after this content."""
    return hashlib.sha256(content).hexdigest().encode()


def read(path: Path, allow_pickle: bool = False) -> Parcel:
    """Read a file of any of the forms, told apart by what is in it, or an adapter's folder.

    Raises NotFoundError, UsageError for a pickle that is not allowed, or DamagedError.
    """
    file = _in_folder(path) if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"There is no file '{path}'; give what 'customttt export' or another program wrote.")
    with refusing(f"'{file.name}' cannot be imported"):
        parcel = _read(file, allow_pickle)
        if parcel.concept is None:
            parcel = replace(parcel, config=_config(file.parent))
    return replace(parcel, folder=path.resolve().name) if path.is_dir() else parcel


def _in_folder(folder: Path) -> Path:
    """The weights of an adapter. Raises NotFoundError for a folder of something else."""
    files = [folder / name for name in IN_FOLDERS if (folder / name).is_file()]
    if not files:
        raise NotFoundError(f"There is no file {IN_FOLDERS[0]} in the folder '{folder}'; give a LoRA's file or folder.")
    if files[0].name == IN_FOLDERS[0] and not (folder / CONFIG).is_file():
        raise NotFoundError(f"There is no file {CONFIG} in the folder '{folder}', so its scale is not known.")
    return files[0]


def _config(folder: Path) -> str:
    file = folder / CONFIG
    if not file.is_file():
        return ""
    if file.stat().st_size > MAX_CONFIG:
        raise DamagedError(f"the {CONFIG} beside it has {file.stat().st_size / 1e6:,.0f} MB")
    return file.read_text(encoding="utf-8")


def _read(path: Path, allow_pickle: bool) -> Parcel:
    if path.stat().st_size > MAX_LORA:
        raise DamagedError(f"it has {path.stat().st_size / 1e6:,.0f} MB, and a LoRA at most {MAX_LORA / 1e6:,.0f}")
    content = path.read_bytes()
    parcel = Parcel(path.name, hashlib.sha256(content).hexdigest(), {})
    if _OLD_PICKLE.match(content):
        return _read_pickle(parcel, content, [content], allow_pickle)
    if not content.startswith(_ZIP):
        return _read_safetensors(parcel, content)
    _check_number(content.count(_ENTRY), "members")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = _checked(archive, len(content))
        if inside := [name for name in names if name.endswith(_PICKLE)]:
            return _read_pickle(parcel, content, [archive.read(name) for name in inside], allow_pickle)
        if MANIFEST not in names:
            raise DamagedError("it is an archive of something else")
        return _read_own(parcel, content, archive)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Make one sentence of whatever is wrong with a file."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{what}: {str(error).rstrip('.')}.") from error
    except _BROKEN as error:
        raise DamagedError(f"{what}: it is cut off or damaged ({error}).") from error


def _checked(archive: zipfile.ZipFile, size: int) -> list[str]:
    """The members' names, after everything that the archive says of them was found harmless."""
    members = archive.infolist()
    names = [member.filename for member in members]
    _refuse_twins(names)
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16) or member.is_dir():
            raise DamagedError(f"its member {member.filename!r} is no file")
        if re.search(r"^[/\\]|(^|[/\\])\.\.([/\\]|$)|:", member.filename):
            raise DamagedError(f"its member {member.filename!r} leads elsewhere")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise DamagedError(f"its member {member.filename!r} is compressed")
    if (declared := sum(member.file_size for member in members)) > size:
        raise DamagedError(f"its members are {declared:,} bytes, and the file {size:,}")
    return names


def _read_own(parcel: Parcel, content: bytes, archive: zipfile.ZipFile) -> Parcel:
    if seal(content[:-SEAL]) != content[-SEAL:]:
        raise DamagedError("it differs from what was exported")
    concept = Concept.from_json(archive.read(MANIFEST).decode())
    texts = (concept.phrase, concept.prompt, concept.base, *(source.name for source in concept.sources))
    if any(NO_TEXT.search(text) for text in (*texts, *concept.versions, *concept.versions.values())):
        raise DamagedError("its manifest holds control characters")
    if MANIFEST in concept.files or WEIGHTS not in concept.files:
        raise DamagedError("its manifest lists files that no concept has")
    if strangers := set(archive.namelist()) ^ {MANIFEST, *concept.files}:
        raise DamagedError(f"its manifest and its members do not agree on {min(strangers)!r}")
    files = {name: archive.read(name) for name in concept.files}
    for name, digest in concept.files.items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise DamagedError(f"its member {name!r} differs from what was exported")
    tensors = _read_safetensors(parcel, files[WEIGHTS]).tensors
    return Parcel(parcel.file, parcel.sha256, tensors, concept=concept, members=files)


def _read_safetensors(parcel: Parcel, content: bytes) -> Parcel:
    """The format's own reader finds wrong sizes, but takes the last of two entries of one name."""
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(len(content) - 8, MAX_HEADER):
        raise DamagedError("it is neither a concept nor safetensors, or it is cut off")
    try:
        header = parsed(content[8 : 8 + length].decode(), MAX_HEADER, _once)
    except ValueError as error:
        raise DamagedError(f"its header is not readable ({error})") from error
    if not isinstance(header, dict):
        raise DamagedError("its header is not readable (it is no JSON object)")
    _check_number(len(header), "tensors")
    if long := next((key for key in header if len(key) > MAX_KEY), None):
        raise DamagedError(f"its tensor {long[:60]!r}... has a name of {len(long):,} characters")
    try:
        weights = lora.parse(content)
    except DamagedError as error:
        raise DamagedError(f"it is cut off or damaged ({error})") from error
    return Parcel(parcel.file, parcel.sha256, weights, metadata=header.get("__metadata__") or {})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twins(name for name, _ in pairs)
    return dict(pairs)


def _refuse_twins(names: Iterable[str]) -> None:
    name, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise DamagedError(f"{name!r} is there twice")


def _check_number(number: int, what: str) -> None:
    if number > MAX_TENSORS:
        raise DamagedError(f"it has {number:,} {what}, and a LoRA at most {MAX_TENSORS:,}")


def _weigh(programs: Iterable[bytes]) -> None:
    """Raise DamagedError for pickles that would build more than a LoRA is."""
    scales = pickles.Scales()
    for program in programs:
        with io.BytesIO(program) as file:
            for _ in range(_OLD_PICKLES if _OLD_PICKLE.match(program) else 1):
                scales.weigh(file)


def _read_pickle(parcel: Parcel, content: bytes, programs: Iterable[bytes], allowed: bool) -> Parcel:
    if not allowed:
        raise UsageError(
            f"'{parcel.file}' is a PyTorch file, which holds a pickle; if you trust where it comes from, "
            "add --allow-pickle (weights only are read)."
        )
    _weigh(programs)
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedError("it holds more than weights, and nothing else is read") from error
    except Exception as error:  # a broken pickle raises anything
        raise DamagedError(f"PyTorch cannot read it ({type(error).__name__})") from error
    loaded = _innermost(loaded)
    if not isinstance(loaded, Mapping | list) or not loaded:
        raise DamagedError("it holds no LoRA weights")
    plain = {_name(key): _plain(key, tensor) for key, tensor in _entries(loaded)}
    return replace(parcel, tensors=plain if isinstance(loaded, Mapping) else list(plain.values()))


def _innermost(loaded: Any) -> Any:
    """A trainer's state holds the weights as `state_dict`, or as the one table in it; either may be wrapped again."""
    for _ in range(4):
        tables = [value for value in loaded.values() if isinstance(value, Mapping)] if isinstance(loaded, dict) else []
        if tables and isinstance(loaded.get("state_dict"), Mapping):
            loaded = loaded["state_dict"]
        elif len(tables) == 1 and not any(isinstance(value, Tensor) for value in loaded.values()):
            loaded = tables[0]
    return loaded


def _entries(loaded: Mapping[Any, Any] | list[Any]) -> Iterable[tuple[Any, Any]]:
    return loaded.items() if isinstance(loaded, Mapping) else enumerate(loaded)


def _name(key: Any) -> str:
    if not isinstance(key, str | int) or len(str(key)) > MAX_KEY:
        raise DamagedError("it has names that are no text, or longer than names are")
    return str(key)


def _plain(key: Any, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise DamagedError(f"{key!r} is no plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise DamagedError(f"{key!r} says it is larger than what is there")
    return tensor.detach()
