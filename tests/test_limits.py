"""Files that ask for more than there is: each is refused in a sentence, in little memory and time."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from material import assert_one_sentence, run
from PIL import Image
from travel import pickled

from customttt import limits, media, text
from customttt.concept import Concept
from customttt.errors import DamagedError, MediaError
from customttt.interchange import parcel, pickles
from customttt.library import Library
from customttt.media import ffmpeg, pixels

# -- text


def test_json_is_read_as_deep_as_allowed_and_no_deeper() -> None:
    deep = limits.MAX_NESTING
    assert text.parsed("[" * deep + "]" * deep, 1000)
    for brackets in ("[" * (deep + 1), '{"a":' * (deep + 1), "[" * 10**5, '[{"a":' * 10**4):
        with pytest.raises(ValueError, match="nested deeper"):
            text.parsed(brackets, 10**6)


def test_brackets_within_strings_do_not_count() -> None:
    assert text.parsed(json.dumps(["[{" * 100, '\\"[' * 100]), 10**4)
    assert text.parsed(json.dumps([[]] * 1000), 10**4)


def test_json_of_lists_without_end_is_not_begun() -> None:
    many = limits.MAX_BRACKETS
    assert len(text.parsed("[" + ",".join(["{}"] * (many - 1)) + "]", 10**6)) == many - 1
    with pytest.raises(ValueError, match="has 200,001 brackets"):
        text.parsed("[" + ",".join(["{}"] * many) + "]", 10**6)


def test_json_that_is_too_long_is_not_begun() -> None:
    with pytest.raises(ValueError, match="has 1,001 characters, and at most 1,000 are read"):
        text.parsed("[" * 1001, 1000)


def test_a_manifest_without_end_is_damaged_and_the_others_are_listed(learned: Path) -> None:
    with (learned / "concepts" / "koala" / "manifest.json").open("r+b") as file:
        file.truncate(limits.MAX_MANIFEST + 1)  # a hole: it takes no room
    found = dict(Library(learned).entries())
    assert isinstance(found["koala"], DamagedError)
    assert isinstance(found["swimming"], Concept)


# -- LoRAs of other programs


def header(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode() + bytes(4)


def tensors(names: list[str]) -> bytes:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return header("{" + ",".join(f'"{name}":{entry}' for name in names) + "}")


def program(*operations: bytes) -> bytes:
    """An archive as PyTorch writes it, with this pickle inside."""
    return archive({"archive/data.pkl": b"\x80\x02" + b"".join(operations) + b"."})


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


FEW_THINGS = 20_000
"""What a pickle may build in these tests: to count a million takes long where every call's types are checked."""
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "tensors": (lambda: tensors([str(number) for number in range(limits.MAX_TENSORS + 1)]), "50,001 tensors"),
    "a long name": (lambda: tensors(["a.lora_A." * 10**5]), "has a name of 900,000 characters"),
    "a long header": (lambda: header(" " * (limits.MAX_HEADER + 1)), "neither a concept nor safetensors"),
    "lists": (lambda: header("[" + "[]," * 10**6 + "[]]"), "its header is not readable"),
    "members": (lambda: archive(dict.fromkeys(map(str, range(limits.MAX_TENSORS + 1)), b"")), "50,001 members"),
    "a tuple of tuples of tuples": (lambda: program(b"})", b"q\0h\0\x86" * 40, b"K\x01s"), "20,000 things"),
    "a list of lists of lists": (lambda: program(b"]q\0", b"]q\1(h\0h\0eq\0" * 40), "20,000 things"),
    "the same tuple as many keys": (
        lambda: program(b"}", b"(" + b"K\x01" * 1000 + b"tq\0", *[b"h\0K\x01s"] * 1000),
        "pickle",
    ),
    "deep tuples": (lambda: program(b"})", b"\x85" * 10**5, b"K\x01s"), "nests things deeper"),
    "nothings": (lambda: program(b"N" * (FEW_THINGS + 1)), "20,000 things"),
    "zeros": (lambda: program(b"c__builtin__\nbytearray\n\x8a\x05\0\x50\xd6\xdc\1\x85R"), "more than weights"),
    "a name that is no text": (lambda: pickled({(1, 2): torch.ones(1)}), "names that are no text"),
    "nothing on the stack": (lambda: program(b"0", b"s"), "cut off or damaged"),
    "no such memory": (lambda: program(b"h\7"), "cut off or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("make", BOMBS)
def test_a_file_that_would_fill_the_memory_is_refused_unread(
    make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, words = BOMBS[make]
    monkeypatch.setattr(pickles, "MAX_PICKLED", FEW_THINGS)
    if make != "a name that is no text":
        monkeypatch.setattr("torch.load", None)
        monkeypatch.setattr(parcel.lora, "parse", None)
    (tmp_path / "a.pt").write_bytes(content())
    with pytest.raises(DamagedError, match=re.escape(words)):
        parcel.read(tmp_path / "a.pt", allow_pickle=True)


def test_an_old_pickle_is_weighed_to_its_end() -> None:
    scales = pickles.Scales()
    with io.BytesIO(b"\x80\x02N.\x80\x02]q\0" + b"]q\1(h\0h\0eq\0" * 40 + b".") as file:
        scales.weigh(file)
        with pytest.raises(DamagedError, match="things"):
            scales.weigh(file)


def test_what_trainers_pickle_weighs_little() -> None:
    state = {f"module.{number}.lora_A.weight": torch.ones(2, 2) for number in range(1000)}
    with zipfile.ZipFile(io.BytesIO(pickled({"state_dict": state, "step": 5, "losses": [0.5] * 1000}))) as file:
        content = file.read("archive/data.pkl")
    scales = pickles.Scales()
    scales.weigh(io.BytesIO(content))
    assert scales.total < limits.MAX_PICKLED / 5


def test_a_configuration_of_patterns_without_end_is_refused(tmp_path: Path) -> None:
    config = {"r": 4, "rank_pattern": {f"a{number}": 4 for number in range(limits.MAX_PATTERNS + 1)}}
    name = "lora_adapter_metadata"
    (tmp_path / "a.safetensors").write_bytes(
        header(json.dumps({"__metadata__": {name: json.dumps(config)}, "a.lora_A.weight": _tensor(0, 4)}))
    )
    done = run("import", tmp_path / "a.safetensors", "--base", "tiny")
    assert_one_sentence(done, 6, "2,001 patterns in 'rank_pattern'")


def _tensor(begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [begin, end]}


# -- pictures


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of that size, RGBA of 16 bits and all nothing, with chunks before its pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, row = zlib.compressobj(), bytes(1 + 8 * width)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0))
    more = b"".join(chunk(name, content) for name, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + first + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("mode", "profile"), [("RGB", True), ("RGBA", False), ("LA", False), ("P", False), ("I;16", False), ("CMYK", False)]
)
def test_bands_change_no_pixel(mode: str, profile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 40, 4), np.uint8)
    image = Image.fromarray(noise).convert("I" if mode == "I;16" else mode.removesuffix(";16"))
    if mode == "I;16":
        image = Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0])
    if profile:
        from PIL import ImageCms

        image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if mode == "P":
        image.info["transparency"] = 3
    whole = np.asarray(pixels.to_rgb(image))
    monkeypatch.setattr(pixels, "BAND", 7 * 40)
    assert np.array_equal(np.asarray(pixels.to_rgb(image)), whole)


def test_the_bars_have_the_colour_of_the_whole_edge() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8))
    edge = np.asarray(noise)
    mean = np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]]).mean(axis=0)
    assert np.abs(pixels.resize(noise, (64, 64), fit=True)[0, 0] - mean.round()).max() == 0


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_what_unpacks_without_end_beside_the_pixels_is_left_packed(kind: bytes, tmp_path: Path) -> None:
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 8)) + packer.flush()
    (tmp_path / "a.png").write_bytes(png(64, 64, (kind, b"a\0\0" + packed)))
    assert media.read_pictures([tmp_path / "a.png"], 32)[0].pixels.max() == 255  # all transparent


def test_captions_without_end_are_refused(pictures: Path, tmp_path: Path) -> None:
    Image.open(pictures / "0.jpg").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A koala.\n" * 10**5)
    with pytest.raises(MediaError, match=r"'a\.txt' has more than 262,144 bytes"):
        media.read_pictures([tmp_path], 32)


# -- clips


def gif(width: int, height: int, frames: int) -> bytes:
    """Every frame draws one pixel of a large canvas."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    control = b"\x21\xf9\x04" + struct.pack("<BHB", 0x04 | (2 << 2), 10, 0) + b"\0"
    frame = control + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b";"


@pytest.mark.parametrize("command", [("evaluate",), ("learn-motion", "a"), ("compose", "--recipe")])
def test_a_gif_of_eight_kilobytes_does_not_fill_the_memory(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(gif(9000, 9000, 300))
    assert (tmp_path / "a.gif").stat().st_size < 8192
    assert_one_sentence(run(*command, tmp_path / "a.gif"), 9, "'a.gif'" if command[0] != "compose" else "carries no")


def small_frames(path: Path) -> Path:
    arguments = ("-f", "lavfi", "-i", "testsrc2=s=64x64:r=200:d=1", "-c:v", "libx264", f"file:{path}")
    assert ffmpeg.run(*arguments).returncode == 0
    return path


def test_frames_that_take_too_long_to_decode_are_not_all_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = small_frames(tmp_path / "a.mp4")
    media.read_clip(clip, 16, 16, 32)
    monkeypatch.setattr("customttt.media.clips.MAX_DECODED", 100 * 64 * 64)
    with pytest.raises(MediaError, match=r"'a\.mp4' has over 100 frames of 0\.0 megapixels in 1 s; make it smaller"):
        media.read_clip(clip, 16, 16, 32)


def test_ffmpeg_may_write_no_more_than_is_wanted(tmp_path: Path) -> None:
    clip = small_frames(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="takes too long or too much memory to decode"):
        ffmpeg.decode(clip, ffmpeg.PLAIN, ("-f", "rawvideo"), 16, most=1000)


@pytest.mark.skipif(not hasattr(ffmpeg, "_hold"), reason="there are no such limits")
def test_ffmpeg_is_held_to_its_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux bounds another process")
    clip = tmp_path / "a.mp4"
    arguments = ("-f", "lavfi", "-i", "testsrc2=s=1024x1024:r=50:d=12", "-c:v", "libx264", "-preset", "ultrafast")
    assert ffmpeg.run(*arguments, f"file:{clip}").returncode == 0
    output = ("-vf", "scale=2048:2048:flags=lanczos", "-f", "null")
    monkeypatch.setattr(ffmpeg, "DECODER_SECONDS", 1)
    with pytest.raises(MediaError, match="takes too long or too much memory to decode"):
        ffmpeg.decode(clip, ffmpeg.PLAIN, output, 0)
    monkeypatch.setattr(ffmpeg, "DECODER_SECONDS", 60)
    monkeypatch.setattr(ffmpeg, "MAX_DECODER", 1 << 26)
    with pytest.raises(MediaError, match=r"'a\.mp4' (takes|cannot)"):
        ffmpeg.decode(clip, ffmpeg.PLAIN, output, 0)


def test_a_note_without_end_is_no_recipe(tmp_path: Path) -> None:
    media.write_video(tmp_path / "video", np.zeros((1, 32, 32, 3), np.uint8), 8, {"prompt": "on Mars"})
    (tmp_path / "video" / "recipe.json").write_text('{"customttt": {"prompt": "' + "x" * limits.MAX_NOTE + '"}}')
    with pytest.raises(MediaError, match="carries no recipe"):
        media.read_recipe(tmp_path / "video")
    arguments = ("-f", "lavfi", "-i", "color=s=64x64:d=1", "-c:v", "libx264", "-movflags", "use_metadata_tags")
    (tmp_path / "said").write_text(";FFMETADATA1\ncomment=" + "x" * 5 * limits.MAX_NOTE + "\n")
    said = ("-f", "ffmetadata", "-i", str(tmp_path / "said"), "-map", "0:v", "-map_metadata", "1")
    assert ffmpeg.run(*arguments[:4], *said, *arguments[4:], f"file:{tmp_path / 'a.mp4'}").returncode == 0
    with pytest.raises(MediaError, match="carries no recipe"):
        media.read_recipe(tmp_path / "a.mp4")


def test_the_documents_tell_every_limit() -> None:
    page = (Path(__file__).parent.parent / "docs" / "limits.md").read_text()
    told: dict[str, str] = {}
    for line in page.splitlines():
        if line.startswith("| ") and "`" in line:
            *_, values, names, _ = line.split("|")
            told |= dict(zip(re.findall(r"`(\w+)`", names), values.strip().split("; "), strict=True))
    known = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert told == {name: f"{value:,g}" if isinstance(value, float) else f"{value:,}" for name, value in known.items()}
