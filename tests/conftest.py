"""Fixtures for every test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import shapes
from standin import Hub, at, running

if TYPE_CHECKING:
    from customttt.interchange.exchange import Home


jaxtyping.jaxtyped = shapes.jaxtyped
"""Where its import hook looks for the decorator of every function."""
os.environ["OMP_NUM_THREADS"] = "1"
"""The workers of a test run share the cores, and bits must not depend on how busy these are."""


def pytest_configure() -> None:
    """Ctrl-C means the same in a shell's background jobs, where it is ignored from the start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of its own for every test: nothing reaches the user's."""
    root = tmp_path / "home"
    monkeypatch.setenv("CUSTOMTTT_HOME", str(root))
    monkeypatch.delenv("CUSTOMTTT_BASE", raising=False)
    return root


@pytest.fixture(scope="session", autouse=True)
def full_precision() -> Iterator[None]:
    """Whatever this CPU can do: a process has one accelerator, and what is bit-equal must not depend on the machine."""
    from customttt import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture
def no_memory_to_try_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learned is learned, and its first video takes more than there is."""
    from torch import OutOfMemoryError

    def full(*_: object) -> None:
        raise OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("customttt.compose.try_out", full)


@pytest.fixture(scope="session")
def tiny_random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with random weights as a diffusers folder."""
    from bases import build_tiny_random

    return build_tiny_random(tmp_path_factory.mktemp("base") / "tiny-random")


@pytest.fixture(scope="session")
def tiny_random_3d_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the other family: a U-Net that was born with time in it."""
    from bases import build_tiny_random

    return build_tiny_random(tmp_path_factory.mktemp("base") / "tiny-random-3d", three_d=True)


@pytest.fixture(scope="session")
def tiny_random_wan_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the transformers."""
    from bases import build_tiny_random_wan

    return build_tiny_random_wan(tmp_path_factory.mktemp("base") / "tiny-random-wan")


@pytest.fixture(scope="session")
def tiny_random_experts_base(tiny_random_wan_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for transformers of two experts."""
    from bases import build_tiny_random_experts

    return build_tiny_random_experts(tmp_path_factory.mktemp("base") / "tiny-random-experts", tiny_random_wan_base)


@pytest.fixture(scope="session", params=["tiny_random_base", "tiny_random_3d_base", "tiny_random_wan_base"])
def any_base(request: pytest.FixtureRequest) -> Path:
    """A base of every family, one after the other."""
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def travel_home(tiny_random_base: Path) -> Home:
    """What an imported concept is held against: the random base, read without its weights."""
    from customttt import backbones
    from customttt.interchange.exchange import Home

    base = str(tiny_random_base)
    return Home(base, backbones.identify(base), backbones.places(base))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small photos of one subject."""
    from material import make_pictures

    return make_pictures(tmp_path_factory.mktemp("material") / "imgs")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 of one movement: 12 frames at 8 a second."""
    from material import make_clip

    return make_clip(tmp_path_factory.mktemp("material") / "clip.mp4")


@pytest.fixture(scope="session")
def _learned_once(tiny_random_base: Path, pictures: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from material import run

    root = tmp_path_factory.mktemp("learned") / "home"
    for command in (["learn-appearance", "koala", str(pictures)], ["learn-motion", "swimming", str(clip)]):
        done = run(*command, "--base", str(tiny_random_base), env={"CUSTOMTTT_HOME": str(root)})
        assert done.exit_code == 0, done.output
    return root


@pytest.fixture
def learned(_learned_once: Path, home: Path) -> Path:
    """This test's library, in which an appearance `koala` and a motion `swimming` are, learned on the random base."""
    return Path(shutil.copytree(_learned_once, home))


@pytest.fixture(scope="session")
def _composed_once(_learned_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from material import run

    root = tmp_path_factory.mktemp("composed")
    library = shutil.copytree(_learned_once, root / "home")
    asked = ("compose", "koala", "swimming", "on Mars", "-o", root / "video")
    done = run(*asked, env={"CUSTOMTTT_HOME": str(library)})
    assert done.exit_code == 0, done.output
    return root


@pytest.fixture
def composed(_composed_once: Path, home: Path, tmp_path: Path) -> Path:
    """A folder of frames as `compose` left it, and this test's library is the one that it came from."""
    shutil.copytree(_composed_once / "home", home)
    return Path(shutil.copytree(_composed_once / "video", tmp_path / "video"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which may ask the network."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return folder


@pytest.fixture
def standin(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:  # noqa: ARG001
    with running() as server:
        at(server.url, monkeypatch)
        yield server


@pytest.fixture
def nobody(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """An address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
