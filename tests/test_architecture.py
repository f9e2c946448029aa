"""The layout holds: files import only what stands above them, and the upper part is free of torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "customttt"
TORCH_FREE = """
    limits errors text progress machine threads config concept recipe library pairs wish
    media.colours media.pixels media.pictures media.ffmpeg media.clips media.outputs media.videos media previews
    interchange interchange.pickles
    measure.ledger measure.stats measure.tracks measure.sheets measure.compare measure many.engine many.crews
    many.spec many.bench many.rays many.gallery many ui ui.desk ui.door ui.parts tiny lab
""".split()  # noqa: SIM905
ORDER = """
    limits errors text progress machine threads config concept recipe library pairs wish
    media.colours media.pixels media.pictures media.ffmpeg media.clips media.outputs media.videos media previews
    video diffusion losses patch lora lion checkpoint
    tiny backbones.hub backbones.interface backbones.family backbones.reader backbones.attention backbones.unets
    backbones.animatediff backbones.unet3d backbones.experts backbones.wan backbones backbones.survey
    opening thrift graphs train sampling ttt learn regions compose torch_internals planner
    interchange interchange.sorts interchange.scales interchange.keys interchange.pickles interchange.parcel
    interchange.exchange
    measure measure.ledger measure.stats measure.tracks measure.sheets measure.metrics measure.extractors
    measure.evaluate measure.compare measure.rivals measure.influence
    workshop
    many many.engine many.crews many.spec many.bench many.rays many.grid many.gallery
    ui ui.desk ui.door ui.parts ui.studio ui.page
    tiny.movements tiny.scenes tiny.world tiny.captions tiny.models tiny.wan_models tiny.judge tiny.known tiny.demo
    lab lab.optimizer lab.codec lab.twins lab.unet_twin lab.wan_twin lab.pretrain lab.spoil lab.judge_training
    lab.lessons lab.demo_inputs lab.score
    lab.arms lab.experiment lab.report lab.study lab.several
""".split()  # noqa: SIM905
"""Every file, by its name below `customttt`; a package's own name is its `__init__`."""
SCRIPTS = {"pretrain.py", "judge_training.py", "score.py", "study.py", "several.py"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Names below `customttt` that a file imports, wherever in it: at the top, in functions, for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {name for name in inside if name.removeprefix("customttt.") in FILES}
            found |= files | ({node.module} if files != inside else set())
    return {name.removeprefix("customttt.") for name in found if name.startswith("customttt.")}


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name: str) -> None:
    assert imported(FILES[name]) <= set(ORDER[: ORDER.index(name)])


def test_every_file_has_its_place_in_the_order() -> None:
    assert sorted({*FILES} - {"__init__"}) == sorted(ORDER)


def test_nothing_but_the_lab_imports_the_lab() -> None:
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "customttt_cli").rglob("*.py")):
        if path.parent.name != "lab":
            assert "customttt.lab" not in {f"customttt.{name}"[:13] for name in imported(path)}, path


def test_the_library_prints_nothing_and_knows_no_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name not in SCRIPTS:
            assert not re.search(r"\bprint\(", path.read_text()), path
        assert "import typer" not in path.read_text(), path


def test_importing_the_upper_part_never_imports_torch() -> None:
    """One process imports file after file, and names the first that brings torch along."""
    modules = [
        "customttt",
        *(f"customttt.{name}" for name in TORCH_FREE),
        *(f"customttt_cli.{path.stem}" for path in sorted((ROOT / "customttt_cli").glob("*.py"))),
    ]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
    if {{"torch", "diffusers", "transformers"}} & set(sys.modules):
        sys.exit(module)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_text_files_are_utf_8_whatever_the_machine_says() -> None:
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "customttt_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                assert "encoding" in [one.arg for one in node.keywords], f"{name_of(path)}, line {node.lineno}"


def test_no_two_classes_have_one_name() -> None:
    files = (*PACKAGE.rglob("*.py"), *(ROOT / "customttt_cli").rglob("*.py"))
    names = Counter(
        node.name for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


OF_A_BASE = re.compile(
    r"(up|down)_blocks|mid_block|attn[12]|to_(q|k|v|out)\b|motion_modules|attentions|transformer_blocks"
    r"|prediction_type|alphas_cumprod|num_train_timesteps|v_prediction|\b77\b|\bunets?\b|UNet|Transformer3D"
    r"|CLIPText|UMT5|Autoencoder|AnimateDiff|encoder_hidden_states|latent_channels|range\(9\)"
)
"""What only a family may know: names in its network, its text encoder and codec, what it predicts and when."""
ABOUT_BASES = {"backbones", "tiny", "lab", "interchange"}
"""Rooms that may: families, the base that ships and its research, and the spellings of other programs."""


def code_of(path: Path) -> str:
    """A file without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


@pytest.mark.parametrize("room", ["customttt", "customttt_cli"])
def test_only_the_backbones_know_what_a_base_is(room: str) -> None:
    """`diffusion` holds the schedules themselves, and `extractors` CLIP as it scores videos."""
    for path in (ROOT / room).rglob("*.py"):
        if path.parent.name not in ABOUT_BASES and path.stem not in ("diffusion", "extractors"):
            assert not (known := OF_A_BASE.search(code_of(path))), f"{path}: {known}"


FAMILIES = "animatediff|unet3d|wan"
NETWORKS = re.compile(r"UNet3DCond|UNetMotionModel|UNet2DCond|WanTransformer|isinstance\(.*AnimateDiff")


def test_a_family_is_one_file_and_one_name_in_the_list_of_families() -> None:
    """Nothing else knows what architectures there are, but `tiny` and the lab, which build and train one."""
    inside = PACKAGE / "backbones"
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "customttt_cli").rglob("*.py")):
        own = path.parent == inside and re.fullmatch(FAMILIES, path.stem)
        if path.parent.name in ("tiny", "lab") or own:
            continue
        assert not NETWORKS.search(path.read_text()), path
        assert path == inside / "__init__.py" or not re.search(rf"backbones\.({FAMILIES})", path.read_text()), path
