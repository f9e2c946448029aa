"""Prompt influence: the swap reaches the blocks it names and no others, and the selection finds what carries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from material import assert_one_sentence, run, snapshot
from standin import Hub
from torch import Tensor
from vision import save_clip

from customttt import backbones
from customttt.backbones import Backbone, open_base
from customttt.errors import UsageError
from customttt.library import Library
from customttt.measure import extractors, influence
from customttt.measure.ledger import Ledger
from customttt.media import Frames
from customttt.progress import Progress
from customttt.sampling import denoise

PAIR = influence.PromptPair("A koala.", "A tiger.")


@pytest.fixture(scope="module")
def backbone(tiny_random_base: Path) -> Backbone:
    return open_base(str(tiny_random_base), torch.device("cpu"))


def predict(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    shape = backbone.latent_shape(2, 64, 64)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).expand(len(prompts), *shape)
    with torch.no_grad():
        return backbone.predict(noise, torch.full((len(prompts),), 500), backbone.embed(prompts))


def layers(*numbers: int) -> influence.Layers:
    return frozenset(numbers)


def test_reading_the_other_prompt_everywhere_is_that_prompt(backbone: Backbone) -> None:
    able = frozenset(backbone.readers)
    starred = backbone.embed([PAIR.starred] * 2)
    with backbone.reading([able, layers()], starred, 2):
        swapped = predict(backbone, [PAIR.prompt] * 2)
    plain = predict(backbone, [PAIR.starred, PAIR.prompt])
    assert torch.equal(swapped, plain)
    assert not torch.allclose(swapped[0], swapped[1])
    assert torch.equal(predict(backbone, [PAIR.starred, PAIR.prompt]), plain), "nothing stays behind"


def test_rows_beyond_the_videos_are_left_alone(backbone: Backbone) -> None:
    able = frozenset(backbone.readers)
    with backbone.reading([able], backbone.embed([PAIR.starred]), 2):
        guided = predict(backbone, [PAIR.prompt, ""])
    assert torch.equal(guided, predict(backbone, [PAIR.starred, ""]))


def test_blocks_without_text_are_known(backbone: Backbone) -> None:
    assert set(backbone.readers) == {0, 1, 2, 4, 6, 7, 8}
    for bad in (3, 9):
        with pytest.raises(UsageError, match=f"Layer {bad} of .* reads no prompt"):
            influence.render_swapped(backbone, PAIR, [layers(bad)], backbone.defaults.sample, 0)


def test_equal_prompts_are_no_pair() -> None:
    with pytest.raises(UsageError, match="must say something else"):
        influence.PromptPair("A koala.", "A koala. ")


def test_the_videos_of_one_seed_differ_in_what_is_read_alone(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influence, "TOGETHER", 2)
    sample = backbone.defaults.sample.but(num_frames=2, size=64, num_inference_steps=2)
    able = frozenset(backbone.readers)
    videos = influence.render_swapped(backbone, PAIR, [layers(), able, layers(6)], sample, 0)
    again = influence.render_swapped(backbone, influence.PromptPair(PAIR.starred, "x"), [layers()], sample, 0)
    assert torch.allclose(videos[1], again[0], atol=1e-5)
    assert not torch.allclose(videos[0], videos[2])


@torch.no_grad()
def test_a_part_of_the_steps_reads_the_other_prompt_alone(backbone: Backbone) -> None:
    sample = backbone.defaults.sample.but(num_frames=2, size=64, num_inference_steps=4)
    path, able = backbone.schedule.path(4), frozenset(backbone.readers)
    noise = torch.randn(1, *backbone.latent_shape(2, 64, 64), generator=torch.Generator().manual_seed(0))
    texts = {text: backbone.embed([text]) for text in (PAIR.prompt, PAIR.starred, "")}
    latents = noise
    for text, steps in ((PAIR.prompt, path[:2]), (PAIR.starred, path[1:3]), (PAIR.prompt, path[2:])):
        latents = denoise(
            backbone, latents, texts[text], texts[""], guidance_scale=sample.guidance_scale, path=steps
        )  # fmt: skip
    part = influence.render_swapped(backbone, PAIR, [able], sample, 0, within=(0.25, 0.5))
    assert torch.allclose(part, backbone.decode(latents), atol=1e-5)
    whole, null = influence.render_swapped(backbone, PAIR, [able, layers()], sample, 0)
    assert not torch.allclose(part[0], whole, atol=1e-4)
    assert not torch.allclose(part[0], null, atol=1e-4)


def study(backbone: Backbone, monkeypatch: pytest.MonkeyPatch, weights: dict[int, float]) -> influence.Measurement:
    """A study in which a set of blocks shows the sum of its weights, and the null shows 0.1."""
    rendered: list[influence.Layers] = []

    def render(
        _: Backbone, __: influence.PromptPair, sets: Sequence[influence.Layers], *more: influence.Shares
    ) -> Tensor:
        rendered.extend(sets)
        begin, end = more[-1]
        shown = [sum(weights.get(layer, 0.0) for layer in some) * (end**2 - begin**2) for some in sets]
        return torch.tensor([0.1 + one for one in shown])

    monkeypatch.setattr(influence, "render_swapped", render)
    made = influence.Measurement(
        backbone, [PAIR, influence.PromptPair("A dog.", "A cat.")], lambda v, *_: v.tolist(), seeds=2
    )
    made.rendered = rendered  # type: ignore[attr-defined]
    return made


def test_the_effect_of_a_block_is_its_score_minus_the_null(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    one = study(backbone, monkeypatch, {2: 0.2, 6: 0.5})
    effects = {found.layers: found.effect for found in one.per_layer()}
    assert effects[6,].value == pytest.approx(0.5)
    assert effects[0,].value == pytest.approx(0.0)
    assert effects[0, 1, 2, 4, 6, 7, 8].value == pytest.approx(0.7)
    assert effects[6,].n == 4
    assert one.page(one.per_layer()) == [layers(0, 1, 2, 4, 7, 8), layers(6), layers(2, 6), layers(0, 1, 2, 4, 6, 7, 8)]


def test_with_one_pair_the_interval_is_over_its_seeds(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(
        study(backbone, monkeypatch, {}), pairs=[PAIR], seeds=3,
        scorer=lambda _, sets, __, seed: [float(seed * len(some)) for some in sets],
    )  # fmt: skip
    (found,) = one.measure([layers(2)])
    assert (found.effect.value, found.effect.low, found.effect.high) == (1, 0, 2)


def test_the_effect_of_a_part_of_the_steps_is_that_of_all_blocks_there(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(backbone, monkeypatch, {2: 0.2, 6: 0.6})
    parts = one.per_part()
    assert [found.within for found in parts] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert [found.effect.value for found in parts] == pytest.approx([0.05, 0.15, 0.25, 0.35])
    assert one.per_layer()[-1].effect.value == pytest.approx(0.8), "each is kept by itself"


def test_selection_finds_the_smallest_set_and_renders_nothing_twice(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(backbone, monkeypatch, {2: 0.2, 6: 0.5, 7: 0.05})
    assert [found.layers for found in one.select(0.9)] == [(6,), (2, 6)]
    assert [found.layers for found in one.select(0.5)] == [(6,)]
    keys = one.rendered  # type: ignore[attr-defined]
    assert len(keys) == 4 * len(set(keys)), "each set once a pair and seed"


def test_the_figure_shows_the_blocks_that_are_asked_for(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    one = study(backbone, monkeypatch, {2: 0.2, 6: 0.5})
    able = layers(0, 1, 2, 4, 6, 7, 8)
    assert one.page(one.per_layer(), [layers(8)]) == [able - {8}, layers(8), able]


def test_progress_counts_every_step_of_every_pair_and_seed(backbone: Backbone) -> None:
    one = influence.Measurement(backbone, [PAIR], lambda v, *_: [0.0] * len(v), seeds=2)
    seen: list[Progress] = []
    one.report = seen.append
    one.measure([layers(6)])
    one.measure([layers(6), layers(2)])
    steps = backbone.defaults.sample.num_inference_steps
    assert [(now.step, now.total) for now in seen] == [(i, 2 * steps) for i in range(1, 2 * steps + 1)] * 2


def test_by_tracks_the_video_that_reads_the_other_prompt_everywhere_moves_as_itself(backbone: Backbone) -> None:
    able = frozenset(backbone.readers)
    sample = backbone.defaults.sample
    videos = influence.render_swapped(backbone, PAIR, [able], sample, 0)
    noise = torch.rand(videos.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    score = influence.by_tracks(backbone)
    same, other = score(torch.cat([videos, noise]), [able, layers(2)], PAIR, 0)
    assert same in (0.0, 1.0), "0 where nothing in it can be followed"
    assert other <= same
    assert influence.by_tracks(backbone)(noise, [layers(2)], PAIR, 0) == [other], (
        "after a kill that video is made again"
    )


def test_by_clip_a_score_is_the_cosine_of_video_and_other_prompt() -> None:
    class Model:
        name = "a model that sees one colour"

        def image_features(self, frames: Frames) -> Tensor:
            return torch.from_numpy(frames).float().mean((1, 2))

        def text_features(self, prompts: Sequence[str]) -> Tensor:
            return torch.tensor([{"Red.": [1.0, 0, 0], "Blue.": [0, 0, 1.0]}[text] for text in prompts])

    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 4)
    score = influence.by_clip(Model())
    assert score(red, [layers(2)], influence.PromptPair("Blue.", "Red."), 0) == pytest.approx([1.0])
    assert score(red, [layers(2)], influence.PromptPair("Red.", "Blue."), 0) == pytest.approx([0.0])


def test_a_killed_study_goes_on_where_it_was(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = {2: 0.2, 6: 0.5}
    whole = study(backbone, monkeypatch, weights)
    expected = whole.select(0.9)

    def killed(videos: Tensor, *_: object) -> list[float]:
        if len(first.rendered) > 12:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return videos.tolist()  # type: ignore[no-any-return]

    first = study(backbone, monkeypatch, weights)
    first.ledger, first.scorer = Ledger(tmp_path / "scores.jsonl"), killed
    with pytest.raises(KeyboardInterrupt):
        first.select(0.9)
    second = study(backbone, monkeypatch, weights)
    second.ledger = Ledger(tmp_path / "scores.jsonl")
    assert second.select(0.9) == expected
    lost = 7  # the blocks of the pair and seed over which it was killed
    assert len(first.rendered) + len(second.rendered) == len(whole.rendered) + lost  # type: ignore[attr-defined]


def test_a_study_needs_a_pair(backbone: Backbone) -> None:
    with pytest.raises(UsageError, match="no pair"):
        influence.Measurement(backbone, [], lambda v, *_: v.tolist())


# -- on the command line


@pytest.fixture
def judged_base(tiny_random_base: Path, tmp_path: Path) -> Path:
    """The random base, said to be of the embedded world, with as few steps as can be."""
    base = tmp_path / "judged"
    base.mkdir()
    for path in tiny_random_base.iterdir():
        (base / path.name).symlink_to(path)
    settings = json.loads((tiny_random_base / "customttt.json").read_text())
    settings["sample"] |= {"num_inference_steps": 1}
    (base / "customttt.json").unlink()
    (base / "customttt.json").write_text(json.dumps({**settings, "judged": True}))
    return base


def test_a_study_leaves_numbers_chart_and_figure(
    judged_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    command = ("influence", *(PAIR.prompt, PAIR.starred), "--base", judged_base, "--seeds", 1, "-o", out, "--json")
    with monkeypatch.context() as patch:
        patch.setattr("customttt_cli.influence._draw", interrupt)
        assert run(*command).stderr.endswith("Interrupted; the same command goes on.\n")
    done = run(*command)
    assert done.exit_code == 0, done.output
    numbers = json.loads(done.stdout)
    assert len(numbers["per layer"]) == 8
    one_video = numbers["per layer"][0]["effect"]
    assert (one_video["low"], one_video["high"], one_video["n"]) == (None, None, 1)
    assert len(numbers["figure"]) == len(numbers["per part"]) == 4
    assert {path.name for path in out.iterdir()} == {"influence.json", "chart.png", "figure.png", "scores.jsonl"}
    found = Library().carrying(backbones.identify(str(judged_base)), "appearance")
    assert found == tuple(numbers["chosen"][-1]["layers"])


@pytest.fixture
def brief_base(judged_base: Path) -> Path:
    """The same, said to be of no world that a judge knows."""
    settings = json.loads((judged_base / "customttt.json").read_text())
    (judged_base / "customttt.json").write_text(json.dumps({**settings, "judged": False}))
    return judged_base


def test_other_bases_are_scored_by_clip_as_published(brief_base: Path, standin: Hub, tmp_path: Path) -> None:
    standin.repositories[extractors.CLIP.id] = save_clip(tmp_path / "clip-model")
    out, sets = tmp_path / "out", ("--layers", "2,6", "--layers", "6")
    done = run("influence", *(PAIR.prompt, PAIR.starred), *sets, "--base", brief_base, "--seeds", 1, "-o", out)
    assert done.exit_code == 0, done.output
    assert "CLIP-T of the second prompt, openai/clip-vit-base-patch32@" in done.stderr
    assert "2 + 6 " in done.stdout
    assert "score minus null (one video)" in done.stdout
    assert "all, 75 to 100 % of the steps" in done.stdout
    assert "--layers auto" not in done.stderr, "nobody said what these prompts are about"


def test_movement_of_other_bases_is_scored_by_tracks(brief_base: Path, tmp_path: Path) -> None:
    pair, out = ("A dog is jumping.", "A dog is running."), tmp_path / "out"
    done = run("influence", *pair, "--kind", "motion", "--base", brief_base, "--seeds", 1, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    numbers = json.loads(done.stdout)
    assert "motion fidelity" in numbers["scored by"]
    assert Library().carrying(backbones.identify(str(brief_base)), "motion") == tuple(numbers["chosen"][-1]["layers"])


@pytest.mark.usefixtures("nobody")
def test_bad_studies_are_refused_before_anything_is_loaded(tiny_random_base: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    bad = tmp_path / "bad.tsv"
    bad.write_text("A koala. A tiger.\n")
    out = ("-o", tmp_path / "out")
    assert_one_sentence(run("influence", "A koala.", *out), 2, "Give two prompts")
    assert_one_sentence(run("influence", "A koala.", "A koala.", *out), 2, "must say something else")
    assert_one_sentence(
        run("influence", "A koala.", "A wombat.", "--base", "tiny", *out), 2, "'A wombat.' names no subject"
    )
    assert_one_sentence(run("influence", "A koala.", "A\x1b tiger.", *out), 2, "the control character U+001B")
    assert_one_sentence(run("influence", "--pairs", bad, *out), 2, "is no pair")
    assert_one_sentence(run("influence", "--pairs", tmp_path / "none.tsv", *out), 3, "There is no file")
    tiny, other = (
        ("A koala.", "A tiger.", "--base", "tiny", *out),
        ("A koala.", "A tiger.", "--base", tiny_random_base, *out),
    )
    assert_one_sentence(run("influence", *tiny, "--layers", "6", "--layers", "3"), 2, "Layer 3 of tiny reads no prompt")
    assert_one_sentence(run("influence", *other, "--layers", "9"), 2, "Layer 9")
    assert_one_sentence(run("influence", *other, "--layers", "auto"), 2, "give numbers of layers")
    assert_one_sentence(run("influence", *tiny, "--score", "tracks"), 2, "own judge scores its world")
    assert_one_sentence(run("influence", *tiny, "--kind", "motion"), 2, "these prompts differ in appearance")
    assert_one_sentence(run("influence", *other), 10, "clip-vit-base-patch32")
    bad.unlink()
    assert snapshot(tmp_path) == before
