"""The study: resumable, paired, and its report says what it found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator

from customttt import media
from customttt.backbones import defaults, open_base
from customttt.lab import arms, experiment, report, study
from customttt.measure import influence, stats
from customttt.tiny import world
from customttt.tiny.movements import HELD_OUT_MOVEMENTS


def judged_by_number(_: media.Frames, cell: experiment.Cell) -> dict[str, float]:
    return dict.fromkeys(experiment.MEASURES, float(1 + cell.pairing))


@pytest.fixture
def small(tiny_random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> experiment.Study:
    """Two pairings by five arms on a base that draws nothing; a video's scores are its pairing's number, 1 or 2."""
    import torch

    ttt = arms.TABLES["ttt"]
    few = {name: ttt[name] for name in ("direct", "appearance", "motion")}
    brief = arms.Arm("brief", lambda recipe: replace(recipe, ttt=recipe.ttt.but(steps=2)))
    monkeypatch.setitem(arms.TABLES, "ttt", {**few, "paper": brief, "ours": ttt["ours"]})
    for module in (experiment, report):
        monkeypatch.setattr(module, "judged", judged_by_number)
    backbone = open_base(str(tiny_random_base), torch.device("cpu"))
    size = experiment.Size(pairings=2, scenes=1, seeds=1, steps=2)
    none = stats.Estimate(0.0, 0.0, 0.0, 2)
    found = [influence.Influence((layer,), none) for layer in range(3)]
    monkeypatch.setattr(influence.Measurement, "per_layer", lambda self: found)  # noqa: ARG005
    monkeypatch.setattr(influence.Measurement, "select", lambda self: found[:1])  # noqa: ARG005
    return experiment.Study(backbone, Accelerator(cpu=True), tmp_path / "run", size)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first finished run is kept for the tests that need one."""
    return tmp_path_factory.mktemp("study") / "run"


@pytest.fixture
def finished(small: experiment.Study, kept: Path) -> experiment.Study:
    """All of the small study is made."""
    if kept.exists():
        shutil.copytree(kept, small.out)
    else:
        small.run(["ttt"])
        shutil.copytree(small.out, kept)
    return small


def test_a_second_run_makes_nothing_again(finished: experiment.Study) -> None:
    small = finished
    made = {path: path.stat().st_mtime_ns for path in small.out.rglob("*.*")}
    small.run(["ttt"])
    assert {path: path.stat().st_mtime_ns for path in small.out.rglob("*.*")} == made


def test_who_comes_first_learns_for_the_others(small: experiment.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"paper": arms.TABLES["ttt"]["paper"]}
    monkeypatch.setitem(arms.TABLES, "ttt", table)
    whole = replace(small, size=replace(small.size, pairings=1, scenes=2))
    jobs = list(whole._jobs(["ttt"], (1, 1)))
    assert [job.kind for job in jobs] == [
        experiment.LEARN, experiment.LEARN, experiment.ADAPT, experiment.RENDER, experiment.RENDER
    ]  # fmt: skip
    learning, training = 2 * experiment.LEARNING_STEP, 2 * experiment.TTT_STEP
    assert [job.what.cost for job in jobs] == pytest.approx([learning, learning, training, 1, 1])
    assert [len(job.needs) for job in jobs[2:]] == [2, 3, 3]
    replace(whole, size=replace(whole.size, scenes=1)).run(["ttt"])
    assert [job.kind for job in replace(whole)._jobs(["ttt"], (1, 1))] == [experiment.RENDER]


def test_two_processes_share_the_work(small: experiment.Study) -> None:
    first, second = small.size.cells()
    small.run(["ttt"], (1, 2))
    assert small.scores(first, arms.DIRECT)
    assert small.scores(second, arms.DIRECT) is None


def test_the_report_holds_means_intervals_and_pictures(
    finished: experiment.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = finished
    monkeypatch.setattr(report, "LEARNED", 1.5)
    small.run(["ttt", arms.BLOCKS])
    report.write(small, ["ttt", arms.BLOCKS], tmp_path / "docs" / "study.md", "python -m customttt.lab.study")
    text = (tmp_path / "docs" / "study.md").read_text()
    assert "| brief | 2 | 1.50 (1.00 to 2.00) |" in text
    assert "| brief | 2 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |" in text  # as much as each LoRA does alone
    assert "+0.00 (+0.00 to +0.00)" in text
    assert "swimming | 1 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 |" in text  # pairing by pairing
    assert "In the 1 pairing whose motion was learned" in text
    assert "nine tenths of what all blocks do: 0 (0.00" in text
    assert {path.name for path in (tmp_path / "docs").glob("*.png")} == {
        "study-0.png", "study-1.png", "study-influence-appearance.png", "study-influence-motion.png"
    }  # fmt: skip


def test_a_sheet_stays_where_not_all_of_its_videos_are_at_hand(finished: experiment.Study, tmp_path: Path) -> None:
    small = finished
    report.write(small, ["ttt"], tmp_path / "study.md", "python -m customttt.lab.study")
    whole = (tmp_path / "study-0.png").read_bytes()
    small.video(experiment.Cell(0, experiment.SCENES[0], 0), arms.DIRECT).unlink()
    report.write(small, ["ttt"], tmp_path / "study.md", "python -m customttt.lab.study")
    assert (tmp_path / "study-0.png").read_bytes() == whole
    assert "(study-0.png)" in (tmp_path / "study.md").read_text()


def forget(whole: experiment.Study, *titles: str, but: int) -> experiment.Study:
    """The same study, where all but so many of the scores of these arms are lost."""
    lines = (whole.out / "ledger.jsonl").read_text().splitlines(keepends=True)
    lost = [line for line in lines if any(f'"{title}"' in line for title in titles)][but:]
    (whole.out / "ledger.jsonl").write_text("".join(line for line in lines if line not in lost))
    return replace(whole)


def test_arms_are_compared_over_what_both_have(finished: experiment.Study, tmp_path: Path) -> None:
    whole = replace(finished, size=replace(finished.size, scenes=2))
    whole.run(["ttt"])
    report.write(forget(whole, "brief", but=3), ["ttt"], tmp_path / "study.md", "python -m customttt.lab.study")
    text = (tmp_path / "study.md").read_text()
    assert "| both LoRAs, no test-time training | 4 | 1.50 (1.00 to 2.00) |" in text
    assert "| brief | 2 | 1.50 (1.00 to 2.00) |" in text  # of the second scene only one of two pairings is made
    assert "| brief | +0.00 (+0.00 to +0.00) |" in text


def test_an_arm_that_has_hardly_begun_is_named_and_left_out(finished: experiment.Study, tmp_path: Path) -> None:
    report.write(forget(finished, "brief", but=1), ["ttt"], tmp_path / "study.md", "python -m customttt.lab.study")
    text = (tmp_path / "study.md").read_text()
    assert "no scene of theirs is made of all pairings: brief (1), ours (1)." in text  # which are the same here


def test_quick_goes_through_every_table_of_the_supplement(
    tiny_random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each table the first and the last arm, each LoRA alone, and one that learns anew."""
    for name, table in arms.TABLES.items():
        kept = [*list(table)[:1], "appearance", "motion", "full", *list(table)[-1:]]
        monkeypatch.setitem(arms.TABLES, name, {key: arm for key, arm in table.items() if key in kept})
    given = ["--quick", "--base", str(tiny_random_base), "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["study", *given, "--report", str(tmp_path / "study.md")])
    monkeypatch.setattr(experiment, "judged", judged_by_number)
    monkeypatch.setattr(report, "judged", judged_by_number)
    monkeypatch.setattr(study, "QUICK", replace(experiment.QUICK, pairings=1, steps=2, ttt_steps=1))
    none = [influence.Influence((0,), stats.Estimate(0.0, 0.0, 0.0, 1))]
    monkeypatch.setattr(influence.Measurement, "per_layer", lambda self: none)  # noqa: ARG005
    monkeypatch.setattr(influence.Measurement, "select", lambda self: none)  # noqa: ARG005
    study.main()
    text = (tmp_path / "study.md").read_text()
    assert "Too short to tell anything" in text
    assert all(f"## {report.TITLES[name]}" in text for name in arms.SUPPLEMENT if name in arms.TABLES)
    assert text.count("## Which blocks carry") == 2
    done = [line for line in capsys.readouterr().out.splitlines() if "minutes left" in line]
    assert done[-1].startswith(f"{len(done)} of {len(done)}: ")
    assert done[-1].endswith(" 0 minutes left")


def test_another_setting_is_another_cell(small: experiment.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small.backbone, "defaults", defaults("tiny"))
    titles: dict[Path, set[str]] = {}
    for arm in (arm for table in arms.TABLES.values() for arm in table.values()):
        titles.setdefault(small.video(small.size.cells()[0], arm), set()).add(arm.title)
    assert [one for one in titles.values() if len(one) > 1] == [  # the same in several tables
        {"appearance LoRA alone", "appearance LoRA alone, 25% in the unconditional half"},
        {"motion LoRA alone", "motion LoRA alone, 25% in the unconditional half"},
        {
            "both LoRAs, no test-time training", "both LoRAs, no test-time training, 100% in the unconditional half",
            "the base's own layers",
        },
        {
            "the base's own way, no test-time training",
            "the base's own way, no test-time training, 25% in the unconditional half",
            "the base's own", "appearance from 47%, motion until 67%", "ours without test-time training",
        },
        {"CustomTTT as published", "the paper's recipe"},
        {"CustomTTT, ours", "ours"},
        {"both LoRAs throughout", "both LoRAs, no test-time training, 25% in the unconditional half"},
        {"appearance from 47%, motion until 67%, learned at all noise", "the motion at all noise"},
    ]  # fmt: skip


def test_pairings_are_of_what_the_base_has_never_seen() -> None:
    for pairing in range(experiment.Size().pairings):
        cell = experiment.Cell(pairing, experiment.SCENES[0], 0)
        assert cell.movement in HELD_OUT_MOVEMENTS
        noun, look = cell.subject
        assert noun in world.HELD_OUT_NOUNS or look in world.HELD_OUT_LOOKS
