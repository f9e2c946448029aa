"""The judge and its scores: known answers, and the machinery that trains it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from customttt import metrics, stats
from customttt.tiny import judge, lessons, score, world

POOL = judge.Pool


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clips() -> world.Clips:
    return judge.random_clips(64, generator(20_000))


@pytest.fixture(scope="module")
def opinion(clips: world.Clips) -> judge.Opinion:
    return judge.load().look(clips.video)


@pytest.mark.parametrize("head", list(judge.HEADS))
def test_the_judge_names_what_a_render_shows(clips: world.Clips, opinion: judge.Opinion, head: str) -> None:
    assert (getattr(opinion, head).argmax(-1) == getattr(clips, head)).float().mean() >= 0.9


def test_the_judge_finds_the_subject(clips: world.Clips, opinion: judge.Opinion) -> None:
    assert ((opinion.position - clips.pose[..., :2]).norm(dim=-1) / 2).mean() < 0.03


def test_the_judge_is_unsure_where_there_is_no_subject_to_tell(clips: world.Clips) -> None:
    told = judge.load().look(judge.warp(clips.video, generator())).names("noun")
    assert told.count(judge.UNSURE) > len(told) / 2
    empty = world.paint(torch.arange(len(world.SCENES)), 64, generator()).unsqueeze(2).expand(-1, -1, 8, -1, -1)
    seen = judge.load().look(empty * 2 - 1)
    assert set(seen.names("noun")) == {judge.UNSURE}
    assert seen.names("scene") == list(world.SCENES)


def test_the_judge_reads_clips_of_any_size(clips: world.Clips) -> None:
    large = torch.nn.functional.interpolate(clips.video[:8], (8, 256, 256), mode="trilinear")
    small, same = judge.load().look(clips.video[:8]), judge.load().look(large)
    assert (small.position - same.position).abs().max() < 0.1


def test_the_wrong_subject_is_less_alike() -> None:
    koala, tiger, purple = score.references([("koala", ("", "")), ("tiger", ("", "")), ("koala", ("purple", "crown"))])
    again = judge.load().look(lessons.render([lessons.Content("koala", "jumping", "on Mars")], 5).video).identity[0]
    assert again @ koala > again @ purple
    assert again @ koala > again @ tiger


def test_compression_with_fine_steps_changes_nothing() -> None:
    video = torch.rand(2, 3, 2, 16, 24, generator=generator()) * 2 - 1
    assert torch.allclose(judge.compress(video, torch.full((2,), 1e-4)), video, atol=1e-3)
    assert not torch.allclose(judge.compress(video, torch.full((2,), 0.5)), video, atol=1e-2)


def test_augmented_clips_keep_shape_and_range() -> None:
    video = torch.rand(3, 3, 8, 64, 64, generator=generator()) * 2 - 1
    for changed in (judge.augment(video, generator()), judge.warp(video, generator())):
        assert changed.shape == video.shape
        assert changed.abs().max() <= 1


def test_a_killed_training_goes_on_and_ends_in_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "Pool", lambda _, g: judge_pool(g))
    monkeypatch.setattr(judge, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(judge, "calibrate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        judge.train(1e-3, tmp_path / "judge.safetensors")
    assert (tmp_path / "judge.state").exists()
    monkeypatch.setattr(judge, "calibrate", lambda *_: None)
    judge.train(1e-3, tmp_path / "judge.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["judge.safetensors"]


def judge_pool(g: torch.Generator) -> judge.Pool:
    return POOL(32, g)


def test_tracks_correlate_as_they_should() -> None:
    t = torch.linspace(0, 1, 8)
    track = torch.stack([t, (6 * t).sin()], -1)
    assert metrics.correlation(track, track * 0.5 + 0.2) == pytest.approx(1.0)
    assert metrics.correlation(track * torch.tensor([-1.0, -1.0]), track) == pytest.approx(-1.0)
    assert metrics.correlation(torch.zeros(8, 2), track) == 0.0


def test_intervals_hold_known_values() -> None:
    known = stats.share(8, 10)  # Wilson's interval of 8 in 10
    assert (known.low, known.high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    assert stats.share(0, 20).low == 0.0
    spread = stats.mean([0.0, 1.0] * 50)
    assert spread.value == 0.5
    assert spread.low == pytest.approx(0.4, abs=0.03)


def test_seeds_of_one_concept_do_not_count_as_independent() -> None:
    values, groups = [0.0] * 10 + [1.0] * 10, ["a"] * 10 + ["b"] * 10
    assert stats.mean(values, groups).high == 1.0
    assert stats.mean(values).high < 0.8


def test_a_ratio_of_means_is_paired() -> None:
    found = stats.ratio([1.0, 2.0, 6.0], [2.0, 4.0, 12.0])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert stats.ratio([0.0, 3.0], [1.0, 2.0]).value == 1.0


def test_a_calibrated_guess_has_no_calibration_error() -> None:
    probability = torch.full((1000,), 0.75)
    right = torch.arange(1000) % 4 != 0
    assert score.calibration_error(probability, right) == pytest.approx(0.0, abs=1e-6)
    assert score.calibration_error(probability, ~right) == pytest.approx(0.5, abs=1e-6)


def test_there_are_twelve_of_each_held_out() -> None:
    for kind in ("look", "noun", "movement"):
        items = lessons.held_out(kind)
        assert len({(c.noun, c.movement, c.look) for c in items}) == 12
    assert all(c.look in world.HELD_OUT_LOOKS for c in lessons.held_out("look"))


def test_the_card_takes_the_numbers_between_its_marks(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(f"before\n{score.MARKS[0]}\nold\n{score.MARKS[1]}\nafter\n")
    row = {"value": 1.0, "low": 0.9, "high": 1.0, "n": 7}
    score.write_card(score.table({"judge": {"noun": row | {"value": 0.5}}, "vae": {"whole frame": row}}), card)
    score.write_card(score.table({"judge": {"noun": row}}), card)
    text = card.read_text()
    assert "| whole frame | 1.000 | 0.900 to 1.000 | 7 |" in text
    assert "0.500" not in text
    assert "| noun | 1.000 | 0.900 to 1.000 | 7 |" in text
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")


def test_what_turns_in_its_place_is_scored_by_its_movement() -> None:
    swims = {"after track": 0.4, "real track": 0.8, "after probability": 0.1, "real probability": 1.0}
    nods = {"after track": 0.0, "real track": 0.0, "after probability": 0.6, "real probability": 0.8}
    assert score.share_of_real(swims, "track") == pytest.approx(0.5)
    assert score.share_of_real(nods, "track") == pytest.approx(0.75)
