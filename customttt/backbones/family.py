"""What a family of bases must say: where its network is, what it loads, how it is opened. One file a family."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from customttt.backbones import hub
from customttt.backbones.hub import Repository
from customttt.backbones.interface import Backbone, Place, WordEmbedding
from customttt.concept import Kind
from customttt.config import Defaults
from customttt.diffusion import Schedule
from customttt.errors import BaseUnavailableError, UsageError


@dataclass(frozen=True)
class NamedBase:
    """A base that has a name. Every number is looked up or computed; its comment says where."""

    name: str
    what: str
    licence: str
    defaults: Defaults | None = None
    """None: they are in its folder."""
    folder: Path | None = None
    """Where it is if it came with this package; else it is downloaded."""
    repositories: tuple[Repository, ...] = ()
    """What is downloaded: the checkpoint, and what belongs to it."""
    download: int = 0
    """Bytes."""
    architecture: Mapping[str, Any] | None = None
    """Of its network, as in its config.json, so that it can be planned with before the download."""
    architecture_name: str = ""
    """In the words of `modelspec.architecture`, where it is not its family's."""
    square: bool = False
    """Whether it was trained on squares alone, and makes nothing else."""
    subjects: int = 0
    """How many it has learned to draw in one video; 0: nobody has measured it."""
    memory: int = 0
    """Bytes of a GPU that learning and test-time training can do with; 0: any CPU will do.

    What the planner foretells for a step of test-time training with every block recomputed or for decoding, a tenth
    more, and one gigabyte for CUDA itself, rounded up. Foretold, not measured; a test holds it to the planner.
    """


@dataclass
class Family(ABC):
    """A loaded base. What it does once it is loaded, `Backbone` says."""

    FOLDER: ClassVar[str]
    """Of its network, in a base in diffusers format."""
    NETWORKS: ClassVar[tuple[str, ...]]
    """Class names in the network's config.json that this family loads."""
    NAMED: ClassVar[tuple[NamedBase, ...]] = ()
    """Its bases that have a name."""
    PARTS: ClassVar[tuple[str, ...]] = hub.PARTS
    """Folders that a base must have."""
    EXTRA_PARTS: ClassVar[tuple[str, ...]] = ()
    """Folders that belong to a base where it has them."""
    CONFIGS: ClassVar[tuple[str, ...]] = ()
    """Configurations without which the shapes of a base are not known, beside its network's."""
    ARCHITECTURES: ClassVar[Mapping[Kind, str]]
    """What a LoRA of each kind is for, in the words of `modelspec.architecture`."""
    KOHYA_BASE: ClassVar[str] = ""
    """The same in the words of `ss_base_model_version`."""

    name: str
    fingerprint: str
    network: Any
    vae: Any
    schedule: Schedule
    defaults: Defaults
    device: torch.device

    @classmethod
    @abstractmethod
    def recipe(cls, config: Mapping[str, Any]) -> Defaults:
        """The settings for a network that has no name, by its config.json."""

    @classmethod
    def companions(cls, config: Mapping[str, Any]) -> tuple[Repository, ...]:  # noqa: ARG003 for those that need it
        """What a network needs besides its own repository. Raises BaseUnavailableError for one that does not fit."""
        return ()

    @classmethod
    @abstractmethod
    def places(cls, config: Mapping[str, Any], folder: Path | None, base: str) -> dict[str, Place]:
        """Whatever a LoRA can wrap, by name, in the order of the network, without weights."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, name: str, fingerprint: str, defaults: Defaults, device: torch.device) -> Backbone:
        """Load a folder in diffusers format. Raises BaseUnavailableError."""

    @classmethod
    @abstractmethod
    def sketch(
        cls, config: Mapping[str, Any], folder: Path | None, name: str, defaults: Defaults, device: torch.device
    ) -> Backbone:
        """The base as it would be on `device`, but on the meta device: shapes without weights, and no text encoder."""

    def check_sides(self, height: int, width: int, step: int) -> None:
        """Raise UsageError for pixels that a codec or a network would cut, or for a shape that the base cannot do."""
        if cut := [side for side in (height, width) if side % step]:
            below = cut[0] // step * step
            near = f"{below} or {below + step}" if below else str(step)
            raise UsageError(f"A side is {cut[0]} pixels; {self.name} takes multiples of {step}, such as {near}.")
        if height != width and any(known.square for known in self.NAMED if known.name == self.name):
            raise UsageError(
                f"Videos of {width} x {height} pixels cannot be made: {self.name} knows squares alone. "
                "Use --aspect 1:1, or another base."
            )

    @property
    def recordable(self) -> bool:
        return True

    def on_gpu(self, decoding: bool = False) -> list[nn.Module]:
        return [self.network, self.vae] if decoding else [self.network]

    def noise(self, kind: Kind) -> tuple[float, float]:  # noqa: ARG002
        return 0.0, 1.0

    # -- what only `influence`, rivals of the method and places of subjects ask for; a family may go without

    @property
    def readers(self) -> tuple[int, ...]:
        return ()

    def reading(self, *_: Any) -> AbstractContextManager[None]:
        raise self._unable()

    def cross_attention(self, layers: Sequence[int]) -> list[str]:  # noqa: ARG002
        raise self._unable()

    def tokens_of(self, prompt: str, word: str) -> list[int]:  # noqa: ARG002
        raise self._unable()

    def heard(self) -> list[str]:
        """The linears by which the prompt is read anywhere, in the networks of both kinds."""
        return self.cross_attention(self.readers)

    @contextmanager
    def attending(self, hear: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
        queries: dict[str, Tensor] = {}

        def asked(name: str, heads: int, _: nn.Module, __: Any, query: Tensor) -> None:
            queries[name] = _by_heads(query, heads)

        def answered(name: str, heads: int, _: nn.Module, __: Any, key: Tensor) -> None:
            hear(name, queries.pop(name), _by_heads(key, heads))

        with ExitStack() as hooks:
            for name in self.heard():
                if name.endswith(".to_q"):
                    attention: Any = self.network.get_submodule(name.removesuffix(".to_q"))
                    # a norm comes after the linear, where there is one
                    for role, note in (("q", asked), ("k", answered)):
                        last = getattr(attention, f"norm_{role}", None) or getattr(attention, f"to_{role}")
                        hooks.callback(last.register_forward_hook(partial(note, name, attention.heads)).remove)
            yield

    def spread(self, linear: str, mask: Tensor) -> Tensor | None:  # noqa: ARG002
        raise self._unable()

    def word(self, noun: str) -> WordEmbedding:  # noqa: ARG002
        raise self._unable()

    def meaning(self, noun: str, vector: WordEmbedding) -> AbstractContextManager[None]:  # noqa: ARG002
        raise self._unable()

    def _unable(self) -> UsageError:
        return UsageError(f"Base '{self.name}' is of a family that cannot do this yet; use another base for it.")

    @classmethod
    def kohya(cls, key: str, kind: Kind) -> str | None:  # noqa: ARG003
        """One of our keys in the spelling of the programs that read kohya's; None where no such program knows it."""
        return None

    @classmethod
    def comfyui(cls, key: str, kind: Kind) -> str | None:
        """The same as ComfyUI itself spells it, where that is not kohya's."""
        return cls.kohya(key, kind)


@contextmanager
def unavailable(base: str) -> Iterator[None]:
    """Turn what is raised over a base that cannot be had into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseUnavailableError(f"Base {base!r} cannot be loaded ({reason}); use --base tiny.") from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of a base. Raises BaseUnavailableError."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BaseUnavailableError(f"{path} cannot be read ({error}); get the base once more.") from error


def load_part(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers from its own folder."""
    return cls.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, variant=hub.variant(folder))


@contextmanager
def visiting(network: nn.Module, device: torch.device) -> Iterator[None]:
    """On a device while it is needed, and then back where it was: the U-Net has the GPU to itself while it learns."""
    home = next(network.parameters()).device
    network.to(device)
    try:
        yield
    finally:
        network.to(home)


@contextmanager
def resting(network: nn.Module, device: torch.device) -> Iterator[None]:
    """In main memory while something else needs a GPU; on the device again afterwards."""
    if device.type != "cuda":
        yield
        return
    network.to("cpu")
    try:
        yield
    finally:
        network.to(device)


def _by_heads(values: Tensor, heads: int) -> Tensor:
    """(rows n heads*d) as (rows heads n d)."""
    return values.view(*values.shape[:2], heads, -1).transpose(1, 2)
