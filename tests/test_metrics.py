"""Metrics against cases with a known answer, by models that can be seen through, and by CLIP and DINO in small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from vision import save_clip, save_dino

from customttt.errors import BaseUnavailableError
from customttt.lab import lessons
from customttt.measure import evaluate, extractors, metrics, tracks
from customttt.measure.evaluate import CLIP_I, CLIP_T, CONSISTENCY, DINO_I, FIDELITY, Candidate
from customttt.media import Frames
from customttt.tiny import known

WORDS = {"a red square.": (255, 0, 0), "a green square.": (0, 255, 0)}


class Colours:
    """A model that sees mean colours, and reads two sentences."""

    name = "mean colours"

    def image_features(self, frames: Frames) -> Tensor:
        return torch.from_numpy(frames.mean((1, 2))).float()

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([WORDS[prompt] for prompt in prompts]).float()


def plain(*colours: tuple[int, int, int]) -> Frames:
    """One frame a colour."""
    return np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in colours])


RED, GREEN, YELLOW = (255, 0, 0), (0, 255, 0), (255, 255, 0)


def texture(height: int, width: int, seed: int) -> Frames:
    """A smooth random pattern that points can be held on to (h w 3)."""
    noise = np.random.default_rng(seed).random((height // 4, width // 4, 3))
    rough = torch.from_numpy(noise).permute(2, 0, 1)[None]
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic")[0].permute(1, 2, 0)
    return (smooth.clamp(0, 1) * 255).byte().numpy()


def moving(path: Sequence[tuple[int, int]], seed: int = 0, background: int | None = None) -> Frames:
    """A patterned square whose corner is at each (x, y) of `path`, on grey or on a pattern of its own."""
    square, behind = texture(40, 40, seed), np.full((128, 128, 3), 128, np.uint8)
    if background is not None:
        behind = texture(128, 128, background)
    frames = np.stack([behind] * len(path))
    for frame, (x, y) in zip(frames, path, strict=True):
        frame[y : y + 40, x : x + 40] = square
    return frames


ACROSS = [(8 + 6 * k, 40 + 2 * k) for k in range(8)]
BACK = [(8 + 6 * k, 40 + 2 * k) for k in reversed(range(8))]
DOWN = [(40 - 2 * k, 8 + 6 * k) for k in range(8)]
DISORDER = [ACROSS[k] for k in (5, 2, 7, 0, 3, 6, 1, 4)]


def values(rows: Sequence[evaluate.Row]) -> dict[str, float]:
    return {row.what: row.values[0] for row in rows if row.values and row.values[0] is not None}


# -- features


def by_colours(frames: Frames, prompt: str | None, pictures: Frames | None) -> dict[str, float]:
    candidates = [Candidate("a", frames, prompt)]
    rows = evaluate.by_clip("colours", Colours, candidates, pictures)
    return values(rows + evaluate.by_dino("colours", Colours, candidates, pictures))


def test_a_video_is_exactly_like_itself() -> None:
    red = plain(RED, RED, RED)
    scores = by_colours(red, "a red square.", red[:1])
    assert scores == pytest.approx({CLIP_T: 1, CLIP_I: 1, DINO_I: 1, CONSISTENCY: 1})


def test_a_wrong_subject_and_a_wrong_prompt_score_lower() -> None:
    scores = by_colours(plain(RED, RED), "a green square.", plain(GREEN))
    assert scores == pytest.approx({CLIP_T: 0, CLIP_I: 0, DINO_I: 0, CONSISTENCY: 1})


def test_means_are_over_frames_and_over_pairs() -> None:
    half = math.sqrt(0.5)  # the cosine of yellow with red or green
    scores = by_colours(plain(RED, GREEN), "a red square.", plain(RED, YELLOW))
    assert scores == pytest.approx({CLIP_T: 0.5, CLIP_I: (1 + half + 0 + half) / 4, DINO_I: (1 + 2 * half) / 4,
                                    CONSISTENCY: 0})  # fmt: skip


def test_shuffled_frames_are_less_consistent() -> None:
    fading = plain(*[(255 - 32 * k, 32 * k, 0) for k in range(8)])
    shuffled = fading[[5, 2, 7, 0, 3, 6, 1, 4]]
    first, second = (by_colours(frames, None, None)[CONSISTENCY] for frames in (fading, shuffled))
    assert first > 0.95
    assert second < first - 0.1


def test_what_was_not_given_costs_its_row_alone_and_says_so() -> None:
    rows = {row.what: row for row in evaluate.by_clip("x", Colours, [Candidate("a", plain(RED, RED))], None)}
    assert "give --prompt" in str(rows[CLIP_T].missing)
    assert "give --images" in str(rows[CLIP_I].missing)
    assert rows[CONSISTENCY].values == (pytest.approx(1.0),)
    (single,) = evaluate.by_tracks([Candidate("a", plain(RED), clip=plain(RED))])
    assert single.missing == "a video has a single frame"


def test_a_model_that_cannot_be_had_is_said_and_one_that_is_not_needed_is_not_asked_for() -> None:
    def load() -> Colours:
        raise BaseUnavailableError("'x' is not downloaded, and the model hub does not answer; use --base tiny.")

    candidates = [Candidate("a", plain(RED, RED), "a red square.")]
    rows = evaluate.by_clip("x", load, candidates, None)
    assert {row.what: row.missing for row in rows} == {
        CLIP_T: "'x' is not downloaded, and the model hub does not answer",
        CLIP_I: "there are no pictures of the subject; give --images",
        CONSISTENCY: "'x' is not downloaded, and the model hub does not answer",
    }
    (row,) = evaluate.by_dino("x", lambda: pytest.fail("asked for"), candidates, None)
    assert row.missing


# -- tracks that are known


def track(*points: tuple[float, float]) -> Tensor:
    return torch.tensor([points])


EAST, WEST = track((0, 0), (0.1, 0), (0.2, 0)), track((0.2, 0), (0.1, 0), (0, 0))
NORTH, STILL = track((0, 0), (0, 0.1), (0, 0.2)), track((0.5, 0.5), (0.5, 0.5), (0.5, 0.5))
TURNING = track((0, 0), (0.1, 0), (0.1, 0.1))


@pytest.mark.parametrize(
    ("made", "truth", "expected"),
    [
        (EAST, EAST, 1), (EAST, EAST + 0.3, 1), (EAST, 2 * EAST, 1), (EAST, WEST, -1), (EAST, NORTH, 0),
        (EAST, TURNING, 0.5), (STILL, STILL, 1), (STILL, EAST, 0), (EAST, STILL, 0),
        (torch.cat([EAST, STILL]), torch.cat([EAST, STILL]), 1),
        (torch.cat([EAST, STILL]), torch.cat([WEST, STILL]), -1),  # a still background does not hide it
        (torch.cat([EAST, WEST]), EAST, (0 + 1) / 2),  # half of what was made is wrong; all of the clip is found
    ],
)  # fmt: skip
def test_motion_fidelity_of_known_tracks(made: Tensor, truth: Tensor, expected: float) -> None:
    assert metrics.motion_fidelity(made, truth) == pytest.approx(expected, abs=1e-6)


def test_a_rest_agrees_with_a_rest_only() -> None:
    pausing = track((0, 0), (0.1, 0), (0.1, 0))
    assert metrics.displacement_agreement(pausing, pausing).item() == pytest.approx(1)
    assert metrics.displacement_agreement(pausing, EAST).item() == pytest.approx(0.5)


def test_trembling_is_no_movement() -> None:
    trembling = STILL + torch.tensor([[[0, 0], [0.4 / 256, 0], [0, 0]]])
    assert metrics.displacement_agreement(trembling, STILL).item() == 1
    assert metrics.motion_fidelity(STILL + 7 * (trembling - STILL), STILL) == 1
    assert metrics.motion_fidelity(STILL + 11 * (trembling - STILL), STILL) == 0


# -- points that are followed


def fidelity(frames: Frames, clip: Frames) -> float:
    return values(evaluate.by_tracks([Candidate("a", frames, clip=clip)]))[FIDELITY]


def test_points_are_followed_to_where_the_square_goes() -> None:
    found = tracks.follow(moving(ACROSS)) * 128
    assert len(found) > 20
    assert np.abs(np.median(found[:, -1] - found[:, 0], axis=0) - (42, 14)).max() < 0.5


def test_a_video_repeats_its_own_movement_in_any_look_and_size() -> None:
    clip = moving(ACROSS, background=9)
    assert fidelity(clip, clip) == pytest.approx(1)
    assert fidelity(moving(ACROSS, seed=5, background=11), clip) > 0.9
    assert fidelity(moving(ACROSS, seed=5), moving(ACROSS)) > 0.99
    large = moving(ACROSS).repeat(2, axis=1).repeat(2, axis=2)
    assert fidelity(large, moving(ACROSS)) > 0.99


@pytest.mark.parametrize("path", [BACK, DOWN, DISORDER])
def test_another_movement_scores_lower(path: Sequence[tuple[int, int]]) -> None:
    assert fidelity(moving(path), moving(ACROSS)) < (-0.9 if path is BACK else 0.2)
    with_background = fidelity(moving(path, seed=5, background=11), moving(ACROSS, background=9))
    assert with_background < 0.5, "points at the square's edge are dragged along a little, and still it is told"


def test_stillness_is_told_from_movement() -> None:
    still, clip = moving([(40, 40)] * 8), moving(ACROSS)
    assert fidelity(still, still) == 1
    assert fidelity(still, clip) == 0
    assert fidelity(np.full_like(clip, 128), clip) == 0, "nothing to follow"
    (row,) = evaluate.by_tracks([Candidate("a", clip, clip=np.full_like(clip, 128))])
    assert row.missing == "no point of the clip can be followed to its end"


def test_several_motions_are_not_held_against_the_clip_of_one() -> None:
    clip = moving(ACROSS)
    one, several = Candidate("a", clip, clip=clip, motions=1), Candidate("b", clip, clip=clip, motions=2)
    (row,) = evaluate.by_tracks([one, several])
    assert row.values == (pytest.approx(1), None)
    assert evaluate.by_tracks([several])[0].missing == evaluate.SEVERAL_MOTIONS


def test_without_opencv_the_row_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracks, "find_spec", lambda _: None)
    (row,) = evaluate.by_tracks([Candidate("a", moving(ACROSS), clip=moving(ACROSS))])
    assert row.missing == "OpenCV is not installed; type pip install 'customttt[evaluate]'"


# -- intervals


def test_the_interval_is_over_videos_and_over_groups_where_there_are_several() -> None:
    row = evaluate.Row("x", "y", (0.0, 1.0, None, 1.0))
    alone = [Candidate(str(k), plain(RED)) for k in range(4)]
    estimate = row.estimate(alone)
    assert estimate is not None
    assert (estimate.value, estimate.n) == (pytest.approx(2 / 3), 3)
    assert estimate.low < estimate.value < estimate.high
    chosen = row.estimate(alone, [1, 3])
    assert chosen is not None
    assert (chosen.value, chosen.low, chosen.high) == (1, 1, 1)
    grouped = evaluate.Row("x", "y", (0.0, 0.0, 1.0, 1.0)).estimate(
        [Candidate(str(k), plain(RED), group=str(k // 2)) for k in range(4)]
    )
    assert grouped is not None
    assert (grouped.low, grouped.high) == (0, 1), "two groups say next to nothing"
    assert row.estimate(alone, [2]) is None


# -- the embedded world


def rendered(noun: str, movement: str, scene: str, seed: int = 3) -> Frames:
    from customttt.video import to_frames

    return to_frames(lessons.render([lessons.Content(noun, movement, scene)], seed, vary=0.0).video)


def test_the_judge_stands_in_on_tinys_world_and_is_not_called_clip() -> None:
    clip, prompt = rendered("dog", "jumping", "on Mars"), "A koala is jumping on Mars."
    pictures = np.concatenate([rendered("koala", "standing still", scene)[:1] for scene in ("on Mars", "at night")])
    right, wrong = rendered("koala", "jumping", "on Mars"), rendered("tiger", "sliding", "at night")
    rows = known.by_judge([Candidate("right", right, prompt, clip), Candidate("wrong", wrong, prompt, clip)], pictures)
    assert [row.what for row in rows] == [*known.SHOWS.values(), known.LOOKS_LIKE, known.MOVES_LIKE]
    assert {row.by for row in rows} == {known.NAME}
    assert not any("CLIP" in row.what or "DINO" in row.what for row in rows)
    for row in rows:
        better, worse = row.values
        assert better is not None
        assert worse is not None
        assert better > worse + 0.2, row


def test_the_judge_says_nothing_of_what_is_not_named() -> None:
    (noun, movement, scene, looks, moves) = known.by_judge(
        [Candidate("a", rendered("koala", "jumping", "on Mars"), "A koala.")], None
    )
    assert noun.values[0] is not None
    assert movement.missing == "no prompt names a movement of tiny's world"
    assert scene.missing == "no prompt names a scene of tiny's world"
    assert "--images" in str(looks.missing)
    assert "--clip" in str(moves.missing)
    in_turn = Candidate("b", rendered("koala", "jumping", "on Mars"), "A koala is jumping and then running.")
    assert known.by_judge([in_turn], None)[1].missing == "movements that a subject makes one after another are not told"


JUMPING_AND_SLIDING = "A koala is jumping and a dog is sliding on Mars."


def scored(prompt: str, subjects: tuple[str, ...] = (), motions: int = 0) -> dict[str, float | str]:
    """A koala that jumps and a dog that slides, held against this prompt, a koala and a clip that jumps; or why not."""
    from customttt.video import to_frames

    dog = lessons.Content("dog", "sliding", "on Mars")
    frames = to_frames(lessons.render([lessons.Content("koala", "jumping", "on Mars", other=dog)], 3, vary=0.0).video)
    pictures, clip = rendered("koala", "standing still", "at night")[:1], rendered("fox", "jumping", "on Mars")
    rows = known.by_judge([Candidate("a", frames, prompt, clip, subjects=subjects, motions=motions)], pictures)
    return {row.what: row.missing or float(row.values[0] or 0) for row in rows}


def untold(found: dict[str, float | str]) -> dict[str, str]:
    return {what: why for what, why in found.items() if isinstance(why, str)}


def test_of_two_subjects_pictures_and_clip_are_of_the_first() -> None:
    """Whoever of them is on the left."""
    swapped = "A dog is sliding and a koala is jumping on Mars."
    for prompt, subjects, like in [
        (JUMPING_AND_SLIDING, (), True),
        (swapped, (), False),
        (JUMPING_AND_SLIDING, ("koala", "dog"), True),
        (swapped, ("koala", "dog"), True),
        (swapped, ("dog", "koala"), False),
    ]:
        found = scored(prompt, subjects, 1)
        for what in (known.LOOKS_LIKE, known.MOVES_LIKE):
            assert (float(found[what]) > 0.9) is like, (prompt, subjects, what)


@pytest.mark.parametrize("prompt", ["A bobo and a dog are jumping on Mars.", "A bobo and a dog are on Mars by a car."])
def test_of_two_subjects_of_whom_one_is_no_word_nothing_is_told(prompt: str) -> None:
    found = scored(prompt, ("bobo", "dog"), 1)
    why = "a video has two subjects, and its prompt does not call both by words of tiny's world"
    assert untold(found) == dict.fromkeys(known.OF_A_SUBJECT, why)
    assert float(found["shows the scene"]) > 0.9
    assert untold(scored(JUMPING_AND_SLIDING, ("bobo", "dog"), 1)) == {}, "a prompt that was given calls them so"


@pytest.mark.parametrize(
    "prompt",
    ["A koala is moonwalking and a dog is jumping on Mars.", "A koala is jumping on Mars while a dog looks on."],
)
def test_a_movement_that_is_not_said_of_both_subjects_is_of_none(prompt: str) -> None:
    why = {"shows the movement": "a prompt does not say of each subject how it moves"}
    assert untold(scored(prompt, ("koala", "dog"), 1)) == untold(scored(prompt)) == why


def test_subjects_that_the_judge_would_mix_up_are_not_told() -> None:
    three = scored("A koala, a dog and a cat are jumping on Mars.", ("koala", "dog", "cat"), 1)
    assert untold(three) == dict.fromkeys(known.OF_A_SUBJECT, "the judge tells no more than two subjects apart")
    alike = "A red koala is jumping and a blue koala is sliding on Mars."
    why = "a video has two subjects of one kind, and the judge does not tell them apart"
    assert untold(scored(alike, ("red koala", "blue koala"), 1)) == dict.fromkeys(known.OF_A_SUBJECT[1:], why)
    assert "shows the movement" not in untold(scored("A red koala and a blue koala are jumping.", (), 1))


def test_of_motions_one_after_another_neither_movement_nor_clip_is_told() -> None:
    both = {
        "shows the movement": "movements that a subject makes one after another are not told",
        known.MOVES_LIKE: evaluate.SEVERAL_MOTIONS,
    }
    assert untold(scored("A koala is moonwalking and then jumping on Mars.", ("koala",), 2)) == both
    in_turn = "A koala is sliding and then jumping on Mars."
    assert untold(scored(in_turn)) == both
    assert [*untold(scored(in_turn, ("koala",), 1))] == ["shows the movement"], "one motion, which is called so"


# -- CLIP and DINO in small


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """CLIP and DINO with random weights, as if they were in the hub's cache."""
    folders = {extractors.CLIP.id: save_clip(tmp_path / "clip"), extractors.DINO.id: save_dino(tmp_path / "dino")}
    monkeypatch.setattr(extractors.hub, "fetch", lambda repository, _=None: folders[repository.id])
    return folders


@pytest.mark.usefixtures("models")
def test_clip_and_dino_turn_frames_and_words_into_vectors() -> None:
    clip, dino = extractors.ClipModel(), extractors.DinoModel()
    assert (clip.name, dino.name) == ("openai/clip-vit-base-patch32@c237dc4", "facebook/dino-vits16@refs/pr/1")
    frames = np.concatenate([moving(ACROSS)] * 5)  # more than one batch
    seen, again = clip.image_features(frames), dino.image_features(frames)
    assert (seen.shape, again.shape) == ((40, 16), (40, 32))
    assert torch.allclose(seen[:8], seen[-8:], atol=1e-5)
    assert torch.allclose(again[:8], again[-8:], atol=1e-5)
    words = clip.text_features(["A koala is swimming on Mars.", "A man is running."])
    assert words.shape == (2, 16)
    assert torch.allclose(words[:1], clip.text_features(["A koala is swimming on Mars."]), atol=1e-5), "no padding seen"
    assert clip.text_features(["a koala " * 100]).shape == (1, 16)


@pytest.mark.usefixtures("models")
def test_clip_in_small_finds_a_video_like_itself() -> None:
    frames = moving(ACROSS)
    same = np.stack([frames[0]] * 4)
    rows = evaluate.by_clip("clip", extractors.ClipModel, [Candidate("a", same, "A koala.")], frames[:1])
    scores = values(rows)
    assert scores[CLIP_I] == pytest.approx(1, abs=1e-5)
    assert scores[CONSISTENCY] == pytest.approx(1, abs=1e-5)
    assert -1 <= scores[CLIP_T] <= 1


def test_a_folder_that_is_not_whole_is_a_sentence(models: dict[str, Path]) -> None:
    (models[extractors.CLIP.id] / "preprocessor_config.json").unlink()
    with pytest.raises(BaseUnavailableError, match=r"cannot be read .* delete it"):
        extractors.ClipModel()
