"""Files by people who mean it: `python tests/campaign/crafted.py`.

Bombs, a few kilobytes that ask for gigabytes, each through every command that reads such a file; then pictures, clips,
videos and concepts spoilt where their formats count, name and point. Each must end with a documented exit code and one
sentence, under 2 GB and within 30 seconds of a core, and must have changed nothing.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from trials import Child, Count, command, foretell, ground, import_everything, options

import_everything()

import imageio_ffmpeg  # noqa: E402
import numpy as np  # noqa: E402
from bases import build_tiny_random  # noqa: E402
from material import snapshot  # noqa: E402
from PIL import Image, PngImagePlugin  # noqa: E402
from places import frames  # noqa: E402
from safetensors.numpy import save  # noqa: E402
from test_limits import archive, gif, header, png, program, tensors  # noqa: E402
from test_malformed import SPOILERS, Good, sealed  # noqa: E402
from travel import zipped  # noqa: E402

from customttt import backbones, limits, media  # noqa: E402
from customttt.interchange.exchange import Home  # noqa: E402
from customttt.tiny.demo import INPUTS  # noqa: E402

Files = dict[str, bytes]
READERS = {
    "picture": [
        "learn-appearance bear {} --dry-run --base tiny", "learn-appearance bear {} --dry-run --fit --base tiny",
    ],
    "clip": [
        "learn-motion run {} --dry-run --base tiny", "evaluate {}", "show {}", "compose --recipe {} --force -o o.mp4",
    ],
    "concept": ["import {} --allow-pickle --base {base} --name koala"],
    "home": ["list", "verify", "show koala", "list --json"],
}  # fmt: skip
"""What is typed of each sort of file."""


def ffmpeg(path: Path, *arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments, str(path)], check=True)


def note(frames: int, width: int, height: int) -> str:
    return json.dumps({"customttt": {}, "fps": 8, "shape": [frames, height, width, 3]})


def still_bombs(folder: Path) -> Iterator[Path]:
    """Pictures as large as they may be, in modes of which each takes other ways; and what unpacks beside pixels."""
    side = 10_000
    for mode in ("RGB", "RGBA", "CMYK", "LAB", "I;16", "F", "L", "1"):
        path = folder / f"{mode.replace(';', '')}.tif"
        Image.new(mode, (side, side)).save(path, compression="tiff_adobe_deflate")
        yield path
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (side, side)).save(folder / "turned.jpg", exif=turned)
    Image.new("CMYK", (side, side)).save(folder / "cmyk.jpg", progressive=True)
    Image.new("RGB", (side, side)).save(folder / "large.bmp")
    Image.new("P", (side, side)).save(folder / "palette.png", transparency=0)
    yield from (folder / name for name in ("turned.jpg", "cmyk.jpg", "large.bmp", "palette.png"))
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 10)) + packer.flush()
    contents = {
        "rgba16.png": png(side, side),
        "text.png": png(64, 64, (b"zTXt", b"a\0\0" + packed)),
        "profile.png": png(64, 64, (b"iCCP", b"a\0\0" + packed)),
        "texts.png": png(64, 64, *[(b"tEXt", b"a\0b")] * 300_000),
        "one.png": png(1, 10**8),
        "huge.png": png(64, 64).replace(struct.pack(">II", 64, 64), struct.pack(">II", 2**30, 2**30)),
        "canvas.gif": gif(10_000, 10_000, 3),
        "frames.gif": gif(64, 64, 300_000),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name


def clip_bombs(folder: Path) -> Iterator[Path]:
    """Canvases, rates and notes that ask for more than the file holds."""
    contents = {"a.gif": gif(10_000, 10_000, 300), "b.gif": gif(5900, 5900, 300), "c.gif": gif(64, 64, 300_000)}
    contents["d.gif"] = gif(60_000, 60_000, 3)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name
    images = [Image.new("RGBA", (4000, 4000), (number, 0, 0, 255)) for number in range(12)]
    images[0].save(folder / "a.webp", save_all=True, append_images=images[1:], duration=20, lossless=True)
    yield folder / "a.webp"
    black = ("-f", "lavfi", "-i")
    codec = ("-c:v", "libx264", "-preset", "ultrafast", "-threads", "2")
    ffmpeg(folder / "skips.mp4", *black, "color=black:s=8192x4320:r=1000:d=1", *codec)
    ffmpeg(
        folder / "references.mp4",
        *black,
        "testsrc2=s=8192x4320:r=30:d=0.6",
        *codec,
        "-refs",
        "16",
        "-pix_fmt",
        "yuv444p10le",
    )
    ffmpeg(folder / "large.mp4", *black, "color=black:s=9984x9984:r=30:d=0.5", *codec)
    ffmpeg(folder / "many.mkv", *black, "color=black:s=64x64:r=5000:d=8", *codec)
    told = ("-metadata", f"comment={note(170, 1024, 1024)}")
    ffmpeg(folder / "ours.mp4", *black, "color=black:s=1024x1024:r=8:d=22", *codec, *told)
    ffmpeg(
        folder / "more.mp4", *black, "color=black:s=64x64:r=8:d=1", *codec, "-metadata", f"comment={note(4096, 64, 64)}"
    )
    yield from (folder / f"{name}.mp4" for name in ("skips", "references", "large", "ours", "more"))
    yield folder / "many.mkv"
    text = PngImagePlugin.PngInfo()
    text.add_text("customttt", "[" * 900_000, zip=True)
    Image.new("RGB", (64, 64)).save(folder / "deep.png", pnginfo=text)
    yield folder / "deep.png"
    for name, content in (
        ("deep", "[" * 10**7),
        ("long", '{"customttt": {"a": "' + "x" * 10**8 + '"}}'),
        ("other", note(4000, 64, 64)),
    ):
        (folder / name).mkdir()
        (folder / name / "recipe.json").write_text(content)
        yield folder / name


def concept_bombs(folder: Path) -> Iterator[Path]:
    """Headers, pickles and archives that grow when they are read."""
    many, lists = limits.MAX_TENSORS, b"[" + b"[]," * 10**7 + b"[]]"
    single = np.zeros((1, 1), np.float32)
    contents: Files = {
        "a million tensors": tensors([str(number) for number in range(10**6)]),
        "tensors": tensors([str(number) for number in range(150_000)]),
        "just too many": tensors([str(number) for number in range(many)]),
        "a long name": tensors(["a.lora_A." * 10**6]),
        "lists": header("[" + "[]," * 3_300_000 + "[]]"),
        "notes": header('{"__metadata__":{' + ",".join(f'"{number}":"x"' for number in range(700_000)) + "}}"),
        "a deep header": header('{"a":' * 10**6),
        "numbers": header('{"a":' + "9" * 9_000_000 + "}"),
        "tuples of tuples": program(b"})", b"q\0h\0\x86" * 60, b"K\x01s"),
        "lists of lists": program(b"]q\0", b"]q\1(h\0h\0eq\0" * 60),
        "deep tuples": program(b"})", b"\x85" * 5_000_000, b"K\x01s"),
        "deep lists": program(b"]q\0" * 10, b"]" * 400_000, b"a" * 400_000),
        "nothings": program(b"N" * 50_000_000),
        "tables": program(b"](", b"}" * 900_000, b"e"),
        "zeros": program(b"c__builtin__\nbytearray\n\x8a\x05\0\x50\xd6\xdc\1\x85R"),
        "a long number": program(b"}\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6 + b"K\x01s"),
        "storage": program(b"ctorch\nFloatStorage\n\x8a\x05\0\x50\xd6\xdc\1\x85R"),
        "members": archive({f"a/{number}": b"" for number in range(200_000)}),
        "members and a pickle": archive(
            {"a/data.pkl": b"\x80\x02}.", **{f"a/{number}": b"" for number in range(many - 1)}}
        ),
        "a manifest of lists": sealed(zipped([(zipfile.ZipInfo("manifest.json"), lists), (zipfile.ZipInfo("a"), b"")])),
        "ranks": save({f"lora_unet_{number}.lora_down.weight": single for number in range(20_000)}),
    }
    for name, content in contents.items():
        (folder / f"{name}.file").write_bytes(content)
        yield folder / f"{name}.file"
    adapter = folder / "adapter"
    adapter.mkdir()
    patterns = {
        f".*a{number}" if number < limits.MAX_WILD else f"a{number}.b": 4 for number in range(limits.MAX_PATTERNS)
    }
    config = {"r": 4, "rank_pattern": patterns, "alpha_pattern": patterns}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    modules = [f"base_model.model.{'x' * 900}.{number}" for number in range(5000)]
    keys = [f"{module}.lora_{role}.weight" for module in modules for role in "AB"]
    (adapter / "adapter_model.safetensors").write_bytes(save({key: np.zeros((4, 4), np.float32) for key in keys}))
    yield adapter


def home_bombs(folder: Path) -> Iterator[Path]:
    """Manifests in a library that others can write to."""
    for name, content in {
        "deep": "[" * 10**7,
        "long": " " * 10**8,
        "lists": "[" + "[]," * 10**7 + "[]]",
        "none": "",
    }.items():
        place = folder / f"home-{name}" / "concepts" / "koala"
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(content)
        yield folder / f"home-{name}"


BOMBS: dict[str, Callable[[Path], Iterator[Path]]] = {
    "picture": still_bombs, "clip": clip_bombs, "concept": concept_bombs, "home": home_bombs,
}  # fmt: skip


def good_media(folder: Path) -> dict[str, list[Path]]:
    """Small files of every format, to be spoilt."""
    picture = Image.fromarray(frames(0)[0])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    pictures = []
    for name, more in {
        "a.jpg": {"exif": exif},
        "b.jpg": {"progressive": True},
        "a.png": {},
        "a.webp": {},
        "a.tif": {"compression": "tiff_lzw"},
        "b.tif": {},
        "a.bmp": {},
        "a.gif": {},
        "a.avif": {},
    }.items():
        picture.save(folder / name, **more)
        pictures.append(folder / name)
    clips = []
    for name in ("clip.mp4", "clip.gif", "clip.webp"):
        media.write_video(folder / name, frames(0), 8, {"prompt": "on Mars"})
        clips.append(folder / name)
    source = ("-f", "lavfi", "-i", "testsrc2=s=64x64:r=8:d=2")
    for name, codec in {
        "a.webm": "libvpx",
        "b.mkv": "libx264",
        "a.avi": "mpeg4",
        "a.mov": "mjpeg",
        "a.mpg": "mpeg2video",
    }.items():
        ffmpeg(folder / name, *source, "-r", "25", "-c:v", codec)
        clips.append(folder / name)
    return {"picture": pictures, "clip": clips}


def crafted(content: bytes) -> bytes:
    """Numbers in its head, or anywhere, made the largest, the smallest or another; parts left out or repeated."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 4])):
        at = random.randrange(min(len(changed), random.choice([64, 400, 10**9])))
        kind = random.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << random.randrange(8)
        elif kind < 3:
            width = random.choice([1, 2, 4, 8])
            changed[at : at + width] = random.choice([b"\xff" * width, bytes(width), b"\x7f" + b"\xff" * (width - 1)])
        elif kind == 3:
            del changed[at : at + random.randrange(1, 40)]
        else:
            changed[at:at] = changed[max(at - 60, 0) : at] * random.choice([1, 50])
    return bytes(changed) or b"a"


class Reader:
    """Types commands on a file, and looks at how they ended."""

    def __init__(self, count: Count, folder: Path, base: Path) -> None:
        self.count, self.folder, self.base = count, folder, base
        self.home = folder / "home"
        self.home.mkdir()

    def read(self, sort: str, kind: str, path: Path, line: str, refused: bool = False) -> None:
        """`refused`: it must not be taken."""
        words = [word.format(path, base=self.base) for word in line.split()]
        home = path if kind == "home" else self.home
        ended = Child(command(*words, home=home, folder=self.folder / "here"), self.folder / "said").wait()
        assert ended
        told = f"'{line.format(path.name, base='base')}'"
        found = [] if ended.is_sound else [f"{told} ended with {ended.code}: {ended.said[-600:]}"]
        if not ended.is_cheap:
            found.append(f"{told} took {ended.memory / 1e9:.2f} GB and {ended.core_seconds:.1f} s")
        if refused and ended.code == 0:
            found.append(f"{told} was let in")
        if (self.home / "concepts").is_dir() and any((self.home / "concepts").iterdir()):
            if refused:
                found.append(f"{told} is in the library")
            shutil.rmtree(self.home / "concepts")
        if any((self.folder / "here").iterdir()):
            found.append(f"{told} left {[one.name for one in (self.folder / 'here').iterdir()]}")
        self.count.took(ended)
        self.count.trial(sort, *found)


def main() -> int:
    found, count = options(2000, __doc__), Count()
    number = found.trials
    with ground() as folder:
        for name in ("here", "bombs", "good", "spoilt"):
            (folder / name).mkdir()
        base = build_tiny_random(folder / "base")
        for line in (("learn-appearance", "bear", INPUTS / "koala"), ("learn-motion", "run", INPUTS / "swimming.mp4")):
            foretell(*line, "--base", "tiny", home=folder / "none", folder=folder)
        reader = Reader(count, folder, base)
        for kind, make in [] if found.seed else BOMBS.items():
            for path in make(folder / "bombs"):
                for line in READERS[kind]:
                    reader.read(f"bomb: {kind}", kind, path, line)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        home = Home(str(base), backbones.identify(str(base)), backbones.places(str(base)))
        good, media_files = Good(home, folder / "good"), good_media(folder / "good")
        before = snapshot(folder / "good")
        done = sum(count.trials.values())
        for turn in range(max(number - done, 0)):
            kind = ("concept", "picture", "clip")[turn % 3]
            if kind == "concept":
                path = folder / "spoilt" / "koala.file"
                path.write_bytes(SPOILERS[turn // 3 % len(SPOILERS)](random.Random(f"{found.seed} {turn}"), good))
            else:
                source = random.choice(media_files[kind])
                path = folder / "spoilt" / source.name
                path.write_bytes(crafted(source.read_bytes()))
            reader.read(f"spoilt: {kind}", kind, path, random.choice(READERS[kind]), refused=kind == "concept")
            path.unlink()
        count.trial("what was spoilt", *([] if snapshot(folder / "good") == before else ["it was changed"]))
    return count.told()


if __name__ == "__main__":
    sys.exit(main())
