"""The layout holds: files import only what stands above them, and the upper part is free of torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "errors", "text", "config", "concept", "recipe", "library", "pixels", "pictures", "ffmpeg", "clips",
    "outputs", "videos", "media", "ledger", "stats", "sheets", "tracks", "machine",
    "diffusion", "backbones", "lora", "sorts", "scales", "keys", "parcel", "exchange", "losses", "metrics",
    "checkpoint", "thrift", "train", "sampling", "ttt", "compose", "learn", "rivals", "planner", "influence", "compare",
    "extractors", "evaluate", "tiny",
]  # fmt: skip
SCRIPTS = {"pretrain.py", "judge_training.py", "score.py", "study.py"}
TORCH_FREE = ORDER[: ORDER.index("machine") + 1]


def imported_modules(path: Path) -> set[str]:
    """Names below `customttt` that a file imports at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "customttt":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("customttt."):
            found.add((node.module or "").split(".")[1])
    return found


@pytest.mark.parametrize("module", ORDER)
def test_a_file_imports_only_from_files_above_it(module: str) -> None:
    path = ROOT / "customttt" / f"{module}.py"
    if not path.exists():
        return  # the packages `backbones` and `tiny` know those below them only inside functions or by purpose
    later = set(ORDER[ORDER.index(module) :])
    assert not imported_modules(path) & later


def test_every_file_has_its_place_in_the_order() -> None:
    names = {path.stem for path in (ROOT / "customttt").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__"} == set(ORDER)


def test_the_library_prints_nothing_and_knows_no_command_line() -> None:
    for path in (ROOT / "customttt").rglob("*.py"):
        if path.name not in SCRIPTS:
            assert not re.search(r"\bprint\(", path.read_text()), path
        assert "import typer" not in path.read_text(), path


@pytest.mark.parametrize("module", ["customttt", *(f"customttt.{name}" for name in TORCH_FREE), "customttt_cli.app"])
def test_importing_the_upper_part_never_imports_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit(bool({{'torch', 'diffusers', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_the_backbones_name_layers() -> None:
    for path in (ROOT / "customttt").rglob("*.py"):
        if path.parent.name != "backbones":
            assert "up_blocks" not in path.read_text().replace("up_block_types", ""), path


def test_a_family_is_one_file_and_one_name_in_the_list_of_families() -> None:
    """Nothing else knows what architectures there are, but `tiny`, which builds and trains one."""
    inside = ROOT / "customttt" / "backbones"
    for path in (*(ROOT / "customttt").rglob("*.py"), *(ROOT / "customttt_cli").rglob("*.py")):
        text = path.read_text()
        if path.parent.name == "tiny" or (path.parent == inside and path.stem in ("animatediff", "unet3d")):
            continue
        assert not re.search(r"UNet3DCond|UNetMotionModel|UNet2DCond|isinstance\(.*AnimateDiff", text), path
        assert path == inside / "__init__.py" or not re.search(r"backbones\.(animatediff|unet3d)", text), path
