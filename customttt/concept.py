"""The manifest of one library entry and its JSON text. No disk access here, and no tensors.

The text begins with `digest`, the sha256 of the text with the digest itself left out: with the sha256 of each
file in `files`, any flipped byte of an entry is found. Unknown fields are refused, not dropped: a new field
means a new `FORMAT_VERSION`, and every older format must go on loading. A concept is written in the
oldest that holds it: format 1 has no `aspect`.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
)

from customttt.errors import DamagedError, UsageError
from customttt.limits import MAX_MANIFEST, MAX_NAME, MAX_SEED, MAX_TEXT
from customttt.text import parsed

FORMAT_VERSION: Final = 2

PREVIEWS: Final = ("preview.mp4", "preview.png", "losses.png", "inputs.png")
"""Files by which an entry is shown (see `previews`): of those that it has, the first is what one wants to see."""

Kind = Literal["appearance", "motion"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{i}" for port in ("com", "lpt") for i in range(10)}


class Source(BaseModel):
    """One picture or clip that a concept was learned from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text  # the file's name, without its folder
    sha256: Sha256  # of the file as the user gave it


class Concept(BaseModel):
    """What the library knows about one learned appearance or motion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2] = 1
    name: Text
    kind: Kind
    phrase: Text  # as it stands in a sentence: "koala" of an appearance, "swimming" of a motion
    prompt: Text  # what was trained on: "A koala."
    base: Text  # name of the base model
    base_fingerprint: Text
    layers: tuple[NonNegativeInt, ...]  # 0-based blocks of the U-Net
    rank: PositiveInt
    steps: NonNegativeInt  # 0 where that is not known: learned by another program
    learning_rate: Annotated[FiniteFloat, Field(ge=0)]  # 0 where that is not known
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    sources: tuple[Source, ...]
    inputs: Sha256  # of pixels and captions as they were learned from, after cutting and fitting; of an imported file
    losses: tuple[FiniteFloat, ...]  # one a step
    files: dict[FileName, Sha256] = {}  # filled in by `Library.add`
    versions: dict[str, str]  # package -> version
    created: AwareDatetime  # UTC
    seconds: Annotated[FiniteFloat, Field(ge=0)]  # of training
    aspect: tuple[PositiveInt, PositiveInt] | None = None  # width to height of a motion's clip as it was learned from,
    # where that is not the base's own; videos of the motion get the same

    @field_validator("created")
    @classmethod
    def _in_utc(cls, created: datetime) -> datetime:
        try:
            return created.astimezone(UTC)
        except OverflowError as error:  # in the first or the last hours of the calendar
            raise ValueError(f"{created} is no time in UTC") from error

    @property
    def previews(self) -> list[str]:
        """Of its files, those by which it is shown."""
        return [name for name in PREVIEWS if name in self.files]

    def to_json(self) -> str:
        """The manifest's text: one field a line, the digest first."""
        fields = {"digest": "", **self.model_dump(mode="json")}
        fields["format_version"] = 1 if self.aspect is None else 2
        if self.aspect is None:
            del fields["aspect"]
        lines = [f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in fields.items()]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        return text.replace('"digest": ""', f'"digest": "{_sha256(text)}"', 1)

    @classmethod
    def from_json(cls, text: str) -> Concept:
        """The concept that `to_json` wrote.

        Raises DamagedError if the text differs from what was written, or if a newer customttt wrote it.
        """
        fields = _parse(text)
        version = fields.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DamagedError(
                f"The manifest has format {version}, made by a newer customttt; this one reads formats up to "
                f"{FORMAT_VERSION}. Upgrade with 'pip install -U customttt'."
            )
        digest = fields.pop("digest", None)
        if not isinstance(digest, str) or not digest or _sha256(text.replace(digest, "", 1)) != digest:
            raise DamagedError("The manifest differs from what was saved.")
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DamagedError(f"The manifest's field '{field}' cannot be used: {first['msg']}.") from error


def check_name(name: str) -> None:
    """Refuse a name that is not a folder's name on every system.

    Raises UsageError unless the name has 1 to 64 ASCII letters, digits, '-', '_' or '.', starts with a letter
    or digit, does not end with '.', and is not reserved by Windows (CON, NUL, COM1, ...).
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME or name.endswith("."):
        raise UsageError(
            f"{name!r} cannot be a concept's name. Use 1 to {MAX_NAME} of the characters a-z A-Z 0-9 - _ . "
            "and start with a letter or digit; do not end with a dot."
        )
    if name.split(".")[0].lower() in _RESERVED:
        raise UsageError(f"{name!r} cannot be a concept's name: Windows reserves it. Try 'my-{name}'.")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(text: str) -> dict[str, Any]:
    try:
        fields = parsed(text, MAX_MANIFEST)
    except ValueError as error:
        raise DamagedError("The manifest is not JSON.") from error
    if not isinstance(fields, dict):
        raise DamagedError("The manifest is not a JSON object.")
    return fields
