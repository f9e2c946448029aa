"""Clips: the frames nearest in time as a player shows them; what is no clip, or too short, is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from footage import (
    FIELD,
    RECIPE,
    animate,
    disc,
    encode,
    extent,
    ffmpeg,
    halves,
    moving,
    ramp,
    saved,
    which,
    with_box,
)  # fmt: skip
from PIL import Image

from customttt.errors import MediaError, NotFoundError, UsageError
from customttt.media import ffmpeg as decoder
from customttt.media import read_clip, read_recipe, read_strip, write_video
from customttt.media.clips import open_reel

CLIPS: dict[str, Callable[[Path], Path]] = {
    "mp4": lambda folder: encode(folder / "a.mp4", ramp(50), 25),
    "mov": lambda folder: encode(folder / "a.mov", ramp(50), 25, "-c:v", "mpeg4", "-q:v", "1"),
    "webm": lambda folder: encode(folder / "a.webm", ramp(50), 25, "-c:v", "libvpx", "-b:v", "4M"),
    "mkv": lambda folder: encode(folder / "a.mkv", ramp(50), 25, "-c:v", "ffv1"),
    "gif": lambda folder: animate(folder / "a.gif", ramp(50), [40] * 50),
    "webp": lambda folder: animate(folder / "a.webp", ramp(50), [40] * 50),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_frames_are_those_nearest_in_time(tmp_path: Path, kind: str) -> None:
    path = CLIPS[kind](tmp_path)
    clip = read_clip(path, 8, 5, (32, 40))
    assert which(clip) == pytest.approx([0, 5, 10, 15, 20, 25, 30, 35], abs=1 if kind == "webm" else 0)
    assert clip.frames.shape == (8, 32, 40, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.fps == pytest.approx(5)
    assert (clip.name, len(clip.sha256)) == (path.name, 64)
    assert which(read_clip(path, 4, 5, 32, start=0.4, end=1.6))[0] in (9, 10, 11)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_short_interval_is_spread_over(tmp_path: Path, kind: str) -> None:
    clip = read_clip(CLIPS[kind](tmp_path), 5, 1, 32, start=0.4, end=0.8)
    assert which(clip) == [10, 12, 14, 16, 18]
    assert clip.fps == pytest.approx(12.5)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_slow_clip_gives_consecutive_frames_and_none_twice(tmp_path: Path, kind: str) -> None:
    clip = read_clip(CLIPS[kind](tmp_path), 16, 60, 32)
    assert which(clip) == list(range(16))
    assert clip.fps == pytest.approx(25)


def test_a_clip_of_just_enough_frames_gives_them_all(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.gif", ramp(4), [30, 500, 30, 1000])
    assert which(read_clip(path, 4, 8, 32)) == [0, 1, 2, 3]


def test_uneven_frames_are_sampled_by_their_time(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.gif", ramp(6), [100, 100, 100, 700, 500, 500])
    assert which(read_clip(path, 3, 2, 32)) == [0, 3, 4]


def test_many_frames_can_be_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", np.zeros((400, 32, 32, 3), np.uint8), 50)
    assert len(read_clip(path, 390, 50, 32).frames) == 390


def test_the_centre_of_a_clip_is_cropped(tmp_path: Path) -> None:
    frames = np.stack([np.hstack([halves(64, 64), halves(64, 64)])] * 3)  # red blue red blue
    clip = read_clip(encode(tmp_path / "a.mp4", frames, 8, "-crf", "1"), 3, 8, 64)
    assert np.abs(clip.frames[0, 32, [8, 56]].astype(int) - [[0, 0, 255], [255, 0, 0]]).max() < 12


def test_a_clip_from_a_phone_is_turned_upright(tmp_path: Path) -> None:
    flat = encode(tmp_path / "flat.mp4", np.stack([halves(64, 64)] * 3), 8)
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", str(flat), "-c", "copy", str(turned))
    top, bottom = read_clip(turned, 3, 8, 64).frames[0, [8, 56], 32]
    assert {int(top.argmax()), int(bottom.argmax())} == {0, 2}


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "ts"])
@pytest.mark.parametrize("aspect", [2.0, 0.5])
def test_pixels_are_square_in_every_container(tmp_path: Path, suffix: str, aspect: float) -> None:
    frames = disc(96, 48) if aspect > 1 else disc(48, 96)
    codec = ("-c:v", "libvpx" if suffix == "webm" else "mpeg4" if suffix == "avi" else "libx264", "-b:v", "2M")
    path = encode(tmp_path / f"a.{suffix}", frames, 8, "-vf", f"setsar={aspect}", *codec)
    height, width = extent(read_clip(path, 3, 8, 64).frames[0])
    assert height == pytest.approx(32, abs=2)
    assert width == pytest.approx(32, abs=2)


def test_a_clip_is_cropped_to_its_clean_aperture(tmp_path: Path) -> None:
    frames = np.concatenate([disc(64, 64), np.full((3, 64, 64, 3), 255, np.uint8)], axis=2)
    path = encode(tmp_path / "a.mp4", frames, 8, "-crf", "1")
    numbers = (64, 1, 64, 1, -32, 1, 0, 1)  # width, height, to the right and down of the centre: each a fraction
    box = b"\0\0\0\x28clap" + b"".join(number.to_bytes(4, signed=True) for number in numbers)
    with_box(path, [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"], box)
    assert extent(read_clip(path, 3, 8, 64).frames[0]) == pytest.approx((32, 32), abs=2)


@pytest.mark.parametrize("suffix", ["mov", "mkv"])
def test_a_wide_clip_that_is_turned_is_cropped_as_it_is_seen(tmp_path: Path, suffix: str) -> None:
    flat = encode(tmp_path / "flat.mp4", np.swapaxes(disc(96, 48), 1, 2), 8, "-vf", "setsar=1/2")
    ffmpeg("-display_rotation", "90", "-i", str(flat), "-c", "copy", str(tmp_path / f"a.{suffix}"))
    assert extent(read_clip(tmp_path / f"a.{suffix}", 3, 8, 64).frames[0]) == pytest.approx((32, 32), abs=2)


def in_hdr(path: Path, transfer: str, *options: str) -> Path:
    """The bars in HDR, white paper at 203 cd/m2, as BT.2408 has it."""
    space = "pin=bt709:tin=bt709:min=bt709:rin=tv:p=bt2020:m=bt2020nc:npl=203"
    filters = ("-vf", f"format=yuv444p,zscale={space}:t={transfer},format=yuv444p10le")
    ffmpeg("-i", str(FIELD / "sdr-bars.mp4"), *filters, *(options or ("-c:v", "ffv1")), str(path))
    return path


HDR: dict[str, Callable[[Path], Path]] = {
    "a phone's HLG": lambda _: FIELD / "hdr-hlg.mov",
    "HLG": lambda folder: in_hdr(folder / "a.mkv", "arib-std-b67"),
    "PQ": lambda folder: in_hdr(folder / "a.mkv", "smpte2084"),
    "PQ of odd size": lambda folder: in_hdr(folder / "a.webm", "smpte2084", "-c:v", "libvpx-vp9", "-b:v", "4M"),
}


@pytest.mark.parametrize("kind", HDR)
def test_hdr_looks_as_the_same_scene_in_sdr(tmp_path: Path, kind: str) -> None:
    control, found = (
        read_clip(path, 4, 8, (96, 128)).frames.astype(int) for path in (FIELD / "sdr-bars.mp4", HDR[kind](tmp_path))
    )
    assert np.abs(found - control).mean() < 14
    grey = (slice(None), slice(20, 50), slice(2, 14))
    assert np.abs(found[grey] - control[grey]).max() <= 6


@pytest.mark.parametrize("primaries", ["smpte432", "smpte431", "bt2020"])
def test_a_wide_gamut_looks_as_the_same_scene_in_a_narrow_one(tmp_path: Path, primaries: str) -> None:
    """Screen recordings and films are in P3 or BT.2020, though not in HDR: their colours read as BT.709 are dull."""
    matrix = "bt2020nc" if primaries == "bt2020" else "bt709"
    red = "setparams=colorspace=gbr:color_trc=bt709:color_primaries=bt709:range=pc,zscale=t=linear,format=gbrpf32le"
    wide = f"zscale=p={primaries},zscale=t=bt709:m={matrix}:r=tv,format=yuv444p10le"
    source = ("-f", "lavfi", "-i", "color=0xc84040:s=64x64:r=8:d=1,format=gbrp", "-vf", f"{red},{wide}")
    told = ("-color_primaries", primaries, "-color_trc", "bt709", "-colorspace", matrix)
    ffmpeg(*source, "-c:v", "libx264", "-crf", "2", *told, str(tmp_path / "a.mp4"))
    found = read_clip(tmp_path / "a.mp4", 2, 4, 32).frames[0, 16, 16]
    assert np.abs(found.astype(int) - (0xC8, 0x40, 0x40)).max() <= 3


CAMERAS = {
    "a.mpg": ("-c:v", "mpeg2video", "-q:v", "1", "-flags", "+ilme+ildct"),
    "a.mp4": ("-c:v", "libx264", "-crf", "1", "-flags", "+ilme+ildct", "-pix_fmt", "yuv420p"),
    "a.mov": ("-c:v", "prores_ks", "-flags", "+ilme+ildct", "-field_order", "tb", "-pix_fmt", "yuv422p10le"),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_a_camcorders_frames_show_one_moment_each(tmp_path: Path, name: str) -> None:
    """Each of its frames holds two, in every other line: what moves has a comb for an edge."""
    frames = np.zeros((48, 64, 64, 3), np.uint8)
    for number in range(48):
        frames[number, :, number : number + 12] = 255
    encode(tmp_path / name, frames, 48, "-vf", "interlace=scan=tff:lowpass=0", *CAMERAS[name])
    found = read_clip(tmp_path / name, 4, 8, 64).frames.mean(-1)
    assert np.abs(np.diff(found[1:], axis=1)).mean() < 1, "no line is of another moment than the next"
    middles = (found[:, 32] * np.arange(64)).sum(1) / found[:, 32].sum(1)
    assert np.abs(middles - (5.5 + 6 * np.arange(4))).max() < 1


def test_dv_counts_as_interlaced_though_ffmpeg_does_not_say_so(tmp_path: Path) -> None:
    encode(tmp_path / "a.dv", ramp(4), 25, "-vf", "scale=720:576", "-r", "25")
    assert decoder.probe(tmp_path / "a.dv").interlaced
    assert len(read_clip(tmp_path / "a.dv", 4, 25, 32).frames) == 4


ALPHA = {
    "webm": ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-b:v", "2M"),
    "vp8.webm": ("-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0", "-b:v", "2M"),
    "mkv": ("-c:v", "ffv1", "-pix_fmt", "yuva444p"),
    "prores.mov": ("-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le"),
    "qtrle.mov": ("-c:v", "qtrle", "-pix_fmt", "argb"),
    "png.mov": ("-c:v", "png", "-pix_fmt", "rgba"),
    "apng": ("-c:v", "apng", "-pix_fmt", "rgba"),
}


@pytest.mark.parametrize("kind", ALPHA)
def test_transparency_is_white_in_every_codec(tmp_path: Path, kind: str) -> None:
    seen = disc()
    frames = np.concatenate([np.full_like(seen, (0, 160, 0)), seen[..., :1]], axis=3)  # green everywhere
    source = ("-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x64", "-framerate", "8", "-i", "-")
    ffmpeg(*source, *ALPHA[kind], str(tmp_path / f"a.{kind}"), stdin=frames.tobytes())
    found = read_clip(tmp_path / f"a.{kind}", 3, 8, 64).frames
    assert np.abs(found[1, 4, 4].astype(int) - 255).max() < 4
    assert np.abs(found[1, 32, 32].astype(int) - (0, 160, 0)).max() < 12
    share = seen[1, ..., :1] / 255
    assert np.abs(found[1] - (share * np.array([0, 160, 0]) + (1 - share) * 255)).mean() < 6


def test_frames_are_chosen_by_time_where_their_size_changes() -> None:
    often, never = (read_clip(FIELD / f"resize-{kind}.webm", 8, 8, (96, 128)) for kind in ("often", "never"))
    assert np.abs(often.frames.mean(axis=(1, 2, 3)) - never.frames.mean(axis=(1, 2, 3))).max() < 1.5
    assert often.fps == pytest.approx(never.fps, rel=0.01)
    part = read_clip(FIELD / "resize-often.webm", 8, 8, (96, 128), start=0.2, end=1.2)
    assert part.fps == pytest.approx(8, rel=0.05)


def test_frames_of_no_fixed_rate_are_chosen_by_their_own_times(tmp_path: Path) -> None:
    times = [0, 2, 3, 5, 9, 10, 11, 18, 19, 20]  # in hundredths of a second, as if it were 100 a second
    expression = "+".join(f"eq(N,{index})*{time}" for index, time in enumerate(times))
    path = encode(tmp_path / "a.mkv", ramp(10), 25, "-c:v", "ffv1", "-vf", f"settb=1/1000,setpts='({expression})*10'",
                  "-enc_time_base", "1:1000", "-fps_mode", "passthrough")  # fmt: skip
    assert open_reel(path).times(0, 1, 100) == pytest.approx([time / 100 for time in times], abs=0.001)
    assert which(read_clip(path, 10, 60, 32)) == list(range(10))
    assert which(read_clip(path, 2, 10, 32, start=0.08)) == [4, 7]


@pytest.mark.parametrize("kind", ["mp4", "mov", "webm", "mkv"])
def test_a_clip_too_large_to_decode_whole_still_has_a_strip(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = CLIPS[kind](tmp_path)
    whole = read_strip(path, 5, 24)
    monkeypatch.setattr("customttt.media.clips.MAX_DECODED", 40 * 48 * 64)
    with pytest.raises(MediaError, match="has over 40 frames"):
        read_clip(path, 45, 25, 32)
    strip = read_strip(path, 5, 24)
    assert strip.frames.shape == whole.frames.shape == (5, 24, 32, 3)
    assert strip.times == pytest.approx([0, 0.4, 0.8, 1.2, 1.6], abs=0.01)
    assert strip.seconds == pytest.approx(whole.seconds, abs=0.05)
    assert strip.frames.mean((1, 2, 3)) == pytest.approx([10, 50, 90, 130, 170], abs=4)


def test_the_strip_of_a_large_clip_has_each_frame_once_with_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a screen on which nothing moves for a while; what is sought then is the next frame."""
    times = "if(lt(N,10),N,if(lt(N,20),N+30,N+31))"  # tenths of a second: 0 to 0.9, 4 to 4.9, 5.1 to 6
    path = encode(tmp_path / "a.mkv", ramp(30), 25, "-c:v", "ffv1", "-vf", f"settb=1/1000,setpts='({times})*100'",
                  "-enc_time_base", "1:1000", "-fps_mode", "passthrough")  # fmt: skip
    monkeypatch.setattr("customttt.media.clips.MAX_DECODED", 20 * 48 * 64)
    strip = read_strip(path, 6, 24)
    assert strip.times == pytest.approx([0, 4, 4.1, 5.1], abs=0.03)
    assert strip.frames.mean((1, 2, 3)) == pytest.approx([10, 50, 54, 90], abs=2.5)


def test_a_strip_may_take_as_long_as_all_that_is_decoded_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[float] = []
    read = decoder.read
    monkeypatch.setattr(decoder, "read", lambda *given: (allowed.append(given[4]), read(*given))[1])
    read_strip(encode(tmp_path / "a.mp4", ramp(50), 5), 3, 24)
    assert allowed[-1] >= 49 / 8, "the last of three frames comes after all others"


KINDS = {
    "avi": ("-c:v", "mpeg4", "-q:v", "1"),
    "ts": ("-c:v", "libx264", "-crf", "1"),
    "mpg": ("-c:v", "mpeg2video", "-q:v", "1", "-r", "25"),
    "flv": ("-c:v", "libx264", "-crf", "1"),
    "wmv": ("-c:v", "msmpeg4", "-q:v", "1"),
    "ogv": ("-c:v", "libtheora", "-q:v", "10"),
    "3gp": ("-c:v", "libx264", "-crf", "1"),
    "mxf": ("-c:v", "mpeg2video", "-q:v", "1"),
    "y4m": (),
    "h264": ("-c:v", "libx264", "-crf", "1", "-bf", "0"),
    "apng": ("-c:v", "apng", "-pix_fmt", "rgb24"),
}


@pytest.mark.parametrize("suffix", KINDS)
def test_ffmpeg_decides_what_a_clip_is(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"a.{suffix}", ramp(50, 96, 128), 25, *KINDS[suffix])
    for named in (path, Path(shutil.copy(path, tmp_path / "no suffix"))):
        assert which(read_clip(named, 8, 5, 32)) == pytest.approx([0, 5, 10, 15, 20, 25, 30, 35], abs=1)


def test_a_clip_may_begin_with_any_box(tmp_path: Path) -> None:
    path, other = encode(tmp_path / "a.mov", ramp(50), 25), tmp_path / "b.mov"
    for first in (b"\0\0\0\x08free", b"\0\0\0\x0cskip\0\0\0\0", b"\0\0\0\x0cpnot\0\0\0\0"):
        ffmpeg("-i", str(path), "-c", "copy", "-movflags", "+frag_keyframe+empty_moov+default_base_moof", str(other))
        other.write_bytes(first + other.read_bytes())
        assert which(read_clip(other, 8, 5, 32)) == [0, 5, 10, 15, 20, 25, 30, 35]


@pytest.mark.parametrize("suffix", ["gif", "webp"])
@pytest.mark.parametrize("delay", [0, 10])
def test_the_shortest_delays_are_shown_as_browsers_do(tmp_path: Path, suffix: str, delay: int) -> None:
    path = animate(tmp_path / f"a.{suffix}", ramp(12), [delay] * 12)
    assert read_clip(path, 4, 10, 32).fps == pytest.approx(10)
    path = animate(tmp_path / f"b.{suffix}", ramp(12), [20] * 12)
    assert read_clip(path, 4, 60, 32).fps == pytest.approx(50)


def test_a_clip_of_an_unknown_codec_is_not_called_damaged(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", ramp(20), 25)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(MediaError, match=r"'a\.mp4' is in a format that is not known here \(.*\); convert it"):
        read_clip(path, 16, 8, 32)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_clip_that_is_too_short_tells_how_many_frames_it_has(tmp_path: Path, kind: str) -> None:
    nine = tmp_path / f"run.{kind}"
    if kind == "mp4":
        encode(nine, ramp(9), 25)
    else:
        animate(nine, ramp(9), [40] * 9)
    message = f"Clip 'run.{kind}' has 9 frames; motion needs 16. Use a longer clip, or at most --frames 9."
    with pytest.raises(MediaError, match=re.escape(message)):
        read_clip(nine, 16, 8, 32)
    with pytest.raises(MediaError, match=r"has [23] frames between 0\.1 s and 0\.2 s; motion needs 16"):
        read_clip(nine, 16, 8, 32, start=0.1, end=0.2)
    with pytest.raises(MediaError, match=r"has 0 frames from 9 s on; motion needs 16\. Use a longer clip\.$"):
        read_clip(nine, 16, 8, 32, start=9)


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp"])
def test_a_still_is_no_clip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "mp4":
        encode(path, ramp(1), 25)
    else:
        Image.fromarray(ramp(1)[0]).save(path)
    with pytest.raises(MediaError, match=r"has 1 frame; motion needs 16\. Use a longer clip\.$"):
        read_clip(path, 16, 8, 32)


def test_a_clip_without_pictures_is_refused(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(tmp_path / "a.mp4"))
    with pytest.raises(MediaError, match=r"'a\.mp4' has no video in it"):
        read_clip(tmp_path / "a.mp4", 16, 8, 32)


def test_a_cover_is_no_clip(tmp_path: Path) -> None:
    cover, clip, sound = tmp_path / "cover.png", encode(tmp_path / "clip.mp4", ramp(50), 25), tmp_path / "sound.m4a"
    Image.new("RGB", (64, 64), "white").save(cover)
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(sound))
    for media, codec, name in ((clip, "copy", "a.mp4"), (sound, "copy", "a.m4a")):
        both = ("-i", str(cover), "-i", str(media), "-map", "0", "-map", "1", "-c", codec, "-c:v:0", "png")
        ffmpeg(*both, "-disposition:v:0", "attached_pic", str(tmp_path / name))
    assert which(read_clip(tmp_path / "a.mp4", 8, 5, 32)) == [0, 5, 10, 15, 20, 25, 30, 35]
    with pytest.raises(MediaError, match=r"'a\.m4a' has no video in it; give a clip with pictures"):
        read_clip(tmp_path / "a.m4a", 8, 5, 32)


@pytest.mark.parametrize("suffix", ["mov", "mkv"])
def test_frames_that_are_too_large_are_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / f"a.{suffix}", ramp(20), 25, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p")
    monkeypatch.setattr("customttt.media.ffmpeg.SAFE", ("-max_pixels", str(48 * 64 - 1)))
    with pytest.raises(MediaError, match="has over 100 megapixels; make it smaller"):
        read_clip(path, 16, 8, 32)


@pytest.mark.parametrize("flags", [(), ("-movflags", "+faststart")])
def test_a_clip_that_is_cut_off_is_refused(tmp_path: Path, flags: Sequence[str]) -> None:
    path = encode(tmp_path / "a.mp4", moving(50, 128, 128), 25, *flags)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(MediaError, match=r"'a\.mp4' cannot be read, it is cut off or damaged"):
        read_clip(path, 16, 8, 32)


def test_a_damaged_animation_is_refused(tmp_path: Path) -> None:
    for suffix in ("gif", "webp"):
        path = animate(tmp_path / f"a.{suffix}", moving(20), [40] * 20)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(MediaError):
            read_clip(path, 16, 8, 32)


SCRIPTS = {
    "hls": b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n",
    "local hls": b"#EXTM3U\n#EXTINF:10,\nb.ts\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile 'b.mp4'\n",
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:"/>',
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "imf": b'<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
    "nothing": b"",
    "text": b"This is no clip.\n",
    "noise": bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8)),
    "still": saved(Image.effect_noise((64, 64), 80)),
    "sound": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\0\0\0\0",
}


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "mpd", "sdp", "ffconcat"])
@pytest.mark.parametrize("kind", SCRIPTS)
def test_what_is_no_clip_is_refused_and_never_leads_elsewhere(tmp_path: Path, kind: str, suffix: str) -> None:
    encode(tmp_path / "b.mp4", ramp(20), 25)
    encode(tmp_path / "b.ts", ramp(20), 25)
    (tmp_path / f"a.{suffix}").write_bytes(SCRIPTS[kind])
    with pytest.raises(MediaError, match=rf"'a\.{suffix}' is no clip that can be read; give one such as an mp4"):
        read_clip(tmp_path / f"a.{suffix}", 16, 8, 32)


@pytest.mark.parametrize("url", ["http://example.org/a.mp4", "HTTPS://x/a", "rtsp://x", "concat:/a", "file:///a"])
def test_a_url_is_refused(url: str) -> None:
    for path in (url, Path(url)):
        with pytest.raises(MediaError, match="is a URL; download it first"):
            read_clip(path, 16, 8, 32)


def test_a_clip_has_to_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no clip"):
        read_clip(tmp_path / "none.mp4", 16, 8, 32)
    with pytest.raises(MediaError, match="is not a file"):
        read_clip(tmp_path, 16, 8, 32)


@pytest.mark.parametrize(
    "numbers",
    [
        {"start": 1.0, "end": 1.0},
        {"start": 2.0, "end": 1.0},
        {"start": -1.0},
        {"start": float("nan")},
        {"num_frames": 0},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"fps": 0.1},
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_read(numbers: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        read_clip("none.mp4", **{"num_frames": 16, "fps": 8.0, "size": 32, **numbers})


def test_strange_file_names_are_just_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "a:b.mp4", "%d 'x' [狐].mp4"):
        write_video(Path(name), ramp(4), 8, RECIPE)
        assert len(read_clip(name, 4, 8, 32).frames) == 4
        assert read_recipe(Path(name)) == RECIPE


@pytest.mark.parametrize("told", ["", "unknown/bt709/unknown", "unknown/unknown/bt709", "unknown/bt709/bt709"])
@pytest.mark.parametrize(
    ("size", "matrix"), [((1280, 720), "bt709"), ((720, 1280), "bt709"), ((640, 360), "smpte170m")]
)
def test_a_clip_that_does_not_say_its_matrix_has_that_of_its_size(
    size: tuple[int, int], matrix: str, told: str, tmp_path: Path
) -> None:
    """Players take BT.709 of HD, and BT.601 of what is smaller, whatever it says of its primaries and transfer."""
    source = ("-f", "lavfi", "-i", f"color=0x30c060:s={size[0]}x{size[1]}:r=8:d=1")
    codec = ("-vf", f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p", "-c:v", "libx264", "-crf", "1")
    _, primaries, transfer = (1 if one == "bt709" else 2 for one in (told or "//").split("/"))
    rest = f"colour_primaries={primaries}:transfer_characteristics={transfer}"
    bare = ("-colorspace", "unknown", "-bsf:v", f"h264_metadata=matrix_coefficients=2:{rest}")
    assert decoder.run(*source, *codec, *bare, f"file:{tmp_path / 'a.mp4'}").returncode == 0
    log = decoder._log_of(decoder._held(("-i", str(tmp_path / "a.mp4")), 9, 0, "info"), tmp_path)
    assert told in log if told else "bt709" not in log
    found = read_clip(tmp_path / "a.mp4", 2, 4, 32).frames[0, 16, 16]
    assert np.abs(found.astype(int) - (0x30, 0xC0, 0x60)).max() <= 6


def test_what_a_trimmer_hides_before_the_cut_is_not_read(tmp_path: Path) -> None:
    """A cut without coding anew keeps the frames since the last whole one, and tells players where to begin."""
    ramp = np.repeat(np.arange(40, 136, 2, np.uint8), 64 * 64 * 3).reshape(48, 64, 64, 3)
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    coded = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-r", "24", "-i", "-", "-c:v", "libx264", "-bf", "3")
    assert decoder.run(*coded, "-g", "48", "-pix_fmt", "yuv420p", f"file:{whole}", stdin=ramp.tobytes()).returncode == 0
    copied = ("-ss", "0.7", "-i", f"file:{whole}", "-c", "copy", "-avoid_negative_ts", "disabled")
    assert decoder.run(*copied, f"file:{cut}").returncode == 0
    found = read_clip(cut, 4, 8, 32).frames.mean((1, 2, 3))
    assert np.abs(found - (40 + 2 * np.array([17, 20, 23, 26]))).max() <= 2


UNSOUGHT = {
    "h264": ("-c:v", "libx264"),
    "m4v": ("-c:v", "mpeg4", "-q:v", "1", "-f", "m4v"),
    "m2v": ("-c:v", "mpeg2video", "-q:v", "1"),
    "mpg": ("-c:v", "mpeg2video", "-q:v", "1"),
    "ts": ("-c:v", "libx264"),
}


@pytest.mark.parametrize("suffix", UNSOUGHT)
def test_a_clip_begins_where_it_is_told_to_though_ffmpeg_cannot_seek_there(tmp_path: Path, suffix: str) -> None:
    """In a stream without a container it begins at the first frame, in broadcasts at the next that is whole."""
    frames = np.repeat(np.arange(40, 140, 2, np.uint8), 64 * 64 * 3).reshape(50, 64, 64, 3)
    path = encode(tmp_path / f"a.{suffix}", frames, 25, *UNSOUGHT[suffix], "-g", "600")
    found = read_clip(path, 4, 8, 32, start=1.0).frames.mean((1, 2, 3))
    assert np.abs(found - (40 + 2 * np.array([25, 28, 31, 34]))).max() <= 3


def test_a_portrait_clip_that_slows_down_is_turned_and_read_by_its_times(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(40, 136, 2, np.uint8), 64 * 96 * 3).reshape(48, 64, 96, 3).copy()
    ramp[:, :16, :16] = (255, 0, 0)
    slow, turned = tmp_path / "slow.mp4", tmp_path / "turned.mov"
    coded = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x64", "-r", "24", "-i", "-", "-c:v", "libx264")
    times = ("-vf", "setpts='if(lt(N,24),N,24+(N-24)*3)/24/TB'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p")
    assert decoder.run(*coded, *times, f"file:{slow}", stdin=ramp.tobytes()).returncode == 0
    assert (
        decoder.run("-display_rotation:v:0", "90", "-i", f"file:{slow}", "-c", "copy", f"file:{turned}").returncode == 0
    )
    clip = read_clip(turned, 12, 8, (96, 64))
    assert (
        np.abs(clip.frames[:, 40, 40].mean(1) - (40 + 2 * np.array([0, 3, 6, 9, 12, 15, 18, 21, *range(24, 28)]))).max()
        < 4
    )
    assert (clip.frames[0, -8, 8] > (200, -1, -1)).all(), "the corner that was above is below, as the file says"
