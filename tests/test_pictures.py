"""Pictures: read as people see them; what is passed over is named, what is broken is refused in one sentence."""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from footage import FIELD, halves, saved
from PIL import Image, ImageCms, PngImagePlugin

from customttt.errors import MediaError, NotFoundError
from customttt.media import passed_over, read_pictures, write_png


def test_a_folder_of_pictures_is_read_in_order_with_its_captions(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.webp", "d.jpeg"):
        Image.fromarray(halves()).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeff a red koala 狐\n\nit sits", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "._a.png").write_bytes(b"left by a Mac")
    pictures = read_pictures([tmp_path], 32)
    assert [picture.name for picture in pictures] == ["a.png", "b.JPG", "c.webp", "d.jpeg"]
    assert [picture.captions for picture in pictures] == [("a red koala 狐", "it sits"), (), (), ()]
    assert {picture.pixels.shape for picture in pictures} == {(32, 32, 3)}
    assert {picture.pixels.dtype for picture in pictures} == {np.dtype(np.uint8)}
    assert len({picture.sha256 for picture in pictures}) == 3  # b and d are the same file


def test_files_and_folders_can_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "z.png", tmp_path / "folder" / "a.png"):
        Image.fromarray(halves()).save(path)
    pictures = read_pictures([tmp_path / "z.png", tmp_path / "folder"], (40, 60))
    assert [picture.name for picture in pictures] == ["z.png", "a.png"]
    assert pictures[0].pixels.shape == (40, 60, 3)


def test_the_centre_is_cropped_and_fit_keeps_all(tmp_path: Path) -> None:
    pixels = np.full((64, 192, 3), 200, np.uint8)
    pixels[:, 64:128] = 10
    write_png(tmp_path / "a.png", pixels)
    cropped = read_pictures([tmp_path], 64)[0].pixels
    assert (cropped == 10).all()
    fitted = read_pictures([tmp_path], 96, fit=True)[0].pixels
    assert fitted[48, 48, 0] < 20
    assert fitted[48, 5, 0] > 190
    edge = (2 * (128 * 200 + 64 * 10) + 2 * 64 * 200) / (2 * 192 + 2 * 64)
    assert abs(float(fitted[2, 48, 0]) - edge) <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(halves(64, 64), turns)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = read_pictures([tmp_path], 64)[0].pixels.astype(int)
    assert np.abs(pixels[:, [4, 60]] - halves(64, 64)[:, [4, 60]]).max() < 20


def as_mode(mode: str) -> Image.Image:
    image = Image.fromarray(halves())
    if mode == "I;16":
        return Image.fromarray(np.full((64, 96), 0x4080, np.uint16))
    if mode in ("RGBA", "LA", "PA"):
        image.putalpha(0)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", "png", (255, 0, 0)),
        ("CMYK", "jpg", (255, 0, 0)),
        ("L", "png", (76, 76, 76)),
        ("1", "png", None),
        ("P", "png", (255, 0, 0)),
        ("RGBA", "png", (255, 255, 255)),
        ("LA", "png", (255, 255, 255)),
        ("RGBA", "webp", (255, 255, 255)),
        ("I;16", "png", (64, 64, 64)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str, expected: tuple[int, ...]) -> None:
    as_mode(mode).save(tmp_path / f"a.{suffix}")
    pixels = read_pictures([tmp_path], 64)[0].pixels
    assert pixels.shape == (64, 64, 3)
    if expected:
        assert np.abs(pixels[32, 4].astype(int) - expected).max() < 6


def test_a_transparent_palette_becomes_white(tmp_path: Path) -> None:
    image = Image.fromarray(halves()).quantize(4)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    assert (read_pictures([tmp_path], 64)[0].pixels[32, 4] == 255).all()


WIDE = Image.open(FIELD / "icc-wide.jpg")
"""A picture whose profile is wider than sRGB: its middle is (200, 40, 40)."""
SAVING = {
    "jpg": {"quality": 95}, "png": {}, "webp": {"lossless": True}, "tif": {}, "avif": {"quality": 95},
    "jfif": {"format": "JPEG"}, "bmp": None, "gif": None,
}  # fmt: skip


@pytest.mark.parametrize("suffix", [suffix for suffix, options in SAVING.items() if options is not None])
@pytest.mark.parametrize("transparent", [False, True])
def test_an_embedded_profile_is_converted_in_every_format(tmp_path: Path, suffix: str, transparent: bool) -> None:
    if transparent and suffix in ("jpg", "jfif"):
        pytest.skip("a JPEG is never transparent")
    image = WIDE.copy()
    if transparent:
        image.putalpha(255)
    image.save(tmp_path / f"a.{suffix}", icc_profile=WIDE.info["icc_profile"], **(SAVING[suffix] or {}))
    pixels = read_pictures([tmp_path], 64)[0].pixels
    assert np.abs(pixels[32, 32].astype(int) - (200, 40, 40)).max() <= 4


@pytest.mark.parametrize("profile", [b"", b"no profile", WIDE.info["icc_profile"][:200], WIDE.info["icc_profile"]])
def test_a_profile_that_does_not_fit_counts_as_none(tmp_path: Path, profile: bytes) -> None:
    Image.new("L", (64, 64), 90).save(tmp_path / "a.png", icc_profile=profile)
    Image.new("CMYK", (64, 64)).save(tmp_path / "b.jpg", icc_profile=profile)
    grey, white = (picture.pixels for picture in read_pictures([tmp_path], 64))
    assert (grey == 90).all()
    assert (white > 250).all()


def test_what_pillow_reads_is_read_and_the_rest_is_named(tmp_path: Path) -> None:
    for suffix, options in SAVING.items():
        Image.fromarray(halves()).save(tmp_path / f"a.{suffix}", **(options or {}))
    Image.fromarray(halves()).save(tmp_path / "b_large", "JPEG")
    Image.fromarray(halves()).save(tmp_path / "c.WEBP", save_all=True)
    (tmp_path / "d.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "a.txt").write_text("a koala")
    (tmp_path / "z.txt").write_text("a dog")
    (tmp_path / "raw").mkdir()
    for name in (".DS_Store", "Thumbs.db", *(f"notes{number}.md" for number in range(7))):
        (tmp_path / name).write_text("no picture")
    pictures = read_pictures([tmp_path], 64)
    assert [one.name for one in pictures] == sorted([*(f"a.{suffix}" for suffix in SAVING), "b_large", "c.WEBP"])
    for one in pictures:
        assert np.abs(one.pixels[:, [4, 60]].astype(int) - halves(64, 64)[:, [4, 60]]).max() < 12, one.name
    assert passed_over([tmp_path, tmp_path / "a.png"]) == [
        f"Passed over in '{tmp_path}': d.HEIC (a HEIC picture, which takes the package pillow-heif to read); "
        "notes0.md, notes1.md, notes2.md, notes3.md, notes4.md and 2 more (no picture that can be read); "
        "raw (a folder); z.txt (a caption without its picture)."
    ]


def test_nothing_is_passed_over_where_all_is_read(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", halves())
    (tmp_path / "a.TXT").write_text("a koala")
    assert passed_over([tmp_path]) == []
    assert read_pictures([tmp_path], 64)[0].captions == ("a koala",)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_several_pictures_in_a_file_the_first_is_read_and_that_is_said(tmp_path: Path, name: str) -> None:
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green")]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:])
    images[0].save(tmp_path / "one.png")
    for path in (tmp_path, tmp_path / name):
        assert passed_over([path]) == [f"Only the first picture is read of what holds several: {name}."]
    assert read_pictures([tmp_path / name], 32)[0].pixels[16, 16].argmax() == 0


def test_a_folder_of_nothing_but_what_is_passed_over_says_so(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(MediaError, match=r"read \(passed over: IMG_1\.HEIC \(a HEIC .* pillow-heif to read\)\); put 3"):
        read_pictures([tmp_path], 64)
    with pytest.raises(
        MediaError, match=r"'IMG_1\.HEIC' is a HEIC picture, which takes the package pillow-heif to read"
    ):
        read_pictures([tmp_path / "IMG_1.HEIC"], 64)


def test_heic_is_read_where_pillow_heif_is_there(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.fromarray(halves()).save(tmp_path / "a.heic", quality=95)
    pixels = read_pictures([tmp_path], 64)[0].pixels
    assert np.abs(pixels[:, [4, 60]].astype(int) - halves(64, 64)[:, [4, 60]]).max() < 12


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes], last: bool = False) -> bytes:
    """A png with more chunks, before its pixels or after them."""
    file = io.BytesIO()
    for kind, content in chunks:
        PngImagePlugin.putchunk(file, kind, content)
    at = png.index(b"IEND" if last else b"IDAT") - 4
    return png[:at] + file.getvalue() + png[at:]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_text_of_any_length_does_not_stop_pixels(tmp_path: Path, kind: str, last: bool) -> None:
    text = b"x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1)
    content = {
        "tEXt": b"a\0" + text,
        "zTXt": b"a\0\0" + zlib.compress(text),
        "iTXt": b"a\0\1\0\0\0" + zlib.compress(text),
    }
    many = 70 if kind == "tEXt" else 1  # over all, there may be 64 MiB
    wide = io.BytesIO()
    WIDE.save(wide, "PNG", icc_profile=WIDE.info["icc_profile"])
    (tmp_path / "a.png").write_bytes(with_chunks(wide.getvalue(), *[(kind.encode(), content[kind])] * many, last=last))
    assert np.abs(read_pictures([tmp_path], 64)[0].pixels[32, 32].astype(int) - (200, 40, 40)).max() <= 4


def test_a_damaged_picture_with_much_text_is_damaged(tmp_path: Path) -> None:
    text = b"a\0\0" + zlib.compress(b"x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1))
    (tmp_path / "a.png").write_bytes(with_chunks(saved(NOISE), (b"zTXt", text))[:-200])
    with pytest.raises(MediaError, match="cut off or damaged"):
        read_pictures([tmp_path], 64)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\xff"]
)
def test_broken_exif_does_not_stop_pixels(tmp_path: Path, exif: bytes) -> None:
    for suffix in ("jpg", "png", "webp"):
        Image.fromarray(halves()).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_pictures([tmp_path], 64)) == 3


def test_what_the_system_refuses_is_not_called_damaged(tmp_path: Path) -> None:
    for path in (tmp_path / f"{'a' * 300}.png", tmp_path / ("a" * 300) / "a.png"):
        with pytest.raises(MediaError, match=r"cannot be opened \(File name too long\); give a file that can"):
            read_pictures([path], 64)


def png_header(width: int, height: int) -> bytes:
    """A png that claims a size and holds no pixel."""
    file = io.BytesIO()
    PngImagePlugin.putchunk(file, b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big"), b"\x08\x02\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + file.getvalue() + b"\0\0\0\0IDAT"


NOISE = Image.effect_noise((64, 64), 80)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'a.png' is no picture that can be read; convert it to JPEG or PNG"),
        (b"#EXTM3U\n", "is no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "is no picture that can be read"),
        (saved(NOISE)[:-200], "'a.png' cannot be read, it is cut off or damaged"),
        (saved(NOISE, "JPEG")[:-200], "cut off or damaged"),
        (saved(NOISE, "WEBP")[:-200], "cut off or damaged"),
        (saved(NOISE)[:60] + b"xxxx" + saved(NOISE)[64:], "cut off or damaged"),
        (saved(Image.new("RGB", (1, 1))), "'a.png' is 1x1 pixels; use one of at least 32x32"),
        (saved(Image.new("RGB", (500, 31))), "is 500x31 pixels; use one of at least 32x32"),
        (
            saved(Image.new("F", (64, 64), 0.5), "TIFF"),
            "has floating-point pixels; save it with 8 or 16 bits a channel",
        ),
        (png_header(10_001, 10_000), "'a.png' has over 100 megapixels; make it smaller"),
        (png_header(2**30, 2**30), "over 100 megapixels"),
    ],
)
def test_what_is_no_usable_picture_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MediaError, match=message):
            read_pictures([tmp_path], 64)


def test_missing_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no picture"):
        read_pictures([tmp_path / "none"], 64)
    with pytest.raises(MediaError, match="has no picture that can be read; put 3 to 8 into it"):
        read_pictures([tmp_path], 64)
    with pytest.raises(MediaError, match="There are 0 pictures"):
        read_pictures([], 64)
    with pytest.raises(MediaError, match="is a URL; download it first"):
        read_pictures([Path("https://example.org/a.png")], 64)


def test_too_many_pictures_are_refused_before_they_are_read(tmp_path: Path) -> None:
    for number in range(201):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(MediaError, match="There are 201 pictures; give 1 to 200"):
        read_pictures([tmp_path], 64)


def test_a_caption_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", halves())
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(MediaError, match=r"Caption 'a\.txt' is not UTF-8"):
        read_pictures([tmp_path], 64)


def test_a_caption_is_text_of_any_script_and_every_space(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", halves())
    text = "コアラ\u3000草の上\r\na\tkoala\u00a0\U0001f468\u200d\U0001f469\u2028third"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    captions = read_pictures([tmp_path], 64)[0].captions
    assert captions == ("コアラ\u3000草の上", "a\tkoala\u00a0\U0001f468\u200d\U0001f469", "third")
    (tmp_path / "a.txt").write_text("a koala\u202e", encoding="utf-8")
    with pytest.raises(MediaError, match=r"^Caption 'a\.txt' holds the control character U\+202E; write it as"):
        read_pictures([tmp_path], 64)


# -- levels of light, as a PNG's gAMA tells them


def with_gamma(image: Image.Image, gamma: float, path: Path) -> Path:
    """A PNG whose levels are that power of the light."""
    image.save(path)
    content = path.read_bytes()
    chunk = b"gAMA" + round(gamma * 100_000).to_bytes(4)
    path.write_bytes(content[:33] + b"\0\0\0\x04" + chunk + zlib.crc32(chunk).to_bytes(4) + content[33:])
    return path


@pytest.mark.parametrize("mode", ["I;16", "L", "LA", "RGB", "RGBA", "P"])
def test_linear_light_is_shown_as_bright_as_it_is(mode: str, tmp_path: Path) -> None:
    level = (150 / 255) ** 2.2
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), round(65535 * level), np.uint16))
    else:
        image = Image.new(
            "RGB" if mode == "P" else mode,
            (40, 40),
            round(255 * level) if mode == "L" else (round(255 * level),) * (3 if mode == "P" else len(mode)),
        )
        if "A" in mode:
            image.putalpha(255)
        image = image.quantize(2) if mode == "P" else image.convert(mode)
    found = read_pictures([with_gamma(image, 1.0, tmp_path / "a.png")], 32)[0].pixels
    assert np.abs(found.astype(int) - 150).max() <= 2


@pytest.mark.parametrize("gamma", [0.45455, 0.0, 20_000.0])
def test_the_usual_gamma_and_an_absurd_one_change_nothing(gamma: float, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), (10, 100, 200))
    found = read_pictures([with_gamma(image, gamma, tmp_path / "a.png")], 32)[0].pixels
    assert (found == (10, 100, 200)).all()


# -- colours that are told without a profile


def with_code_points(image: Image.Image, primaries: int, transfer: int, path: Path) -> Path:
    """A PNG that tells its colours in cICP, an AVIF in nclx."""
    image.save(path, **({"quality": 100, "subsampling": "4:4:4"} if path.suffix == ".avif" else {}))
    content = path.read_bytes()
    if path.suffix == ".avif":
        at = content.index(b"colrnclx") + 8
        path.write_bytes(content[:at] + primaries.to_bytes(2) + transfer.to_bytes(2) + content[at + 4 :])
    else:
        chunk = b"cICP" + bytes([primaries, transfer, 0, 1])
        path.write_bytes(content[:33] + b"\0\0\0\x04" + chunk + zlib.crc32(chunk).to_bytes(4) + content[33:])
    return path


CODED = {
    "P3": (12, 13, (171, 72, 69), 255),
    "BT.2020": (9, 13, (154, 81, 68), 255),
    "PQ": (9, 16, (119, 87, 80), 148),
    "HLG": (9, 18, (149, 76, 65), 191),
    "linear": (1, 8, (124, 13, 13), 255),
}
"""Code points, and the levels of (185, 64, 64) and of white of 203 cd/m2: by ffmpeg's zscale, HLG's by BT.2100."""


@pytest.mark.parametrize("suffix", [".png", ".avif"])
@pytest.mark.parametrize("kind", CODED)
def test_colours_in_code_points_become_srgb(tmp_path: Path, kind: str, suffix: str) -> None:
    primaries, transfer, matt, white = CODED[kind]
    image = Image.new("RGB", (64, 40), matt)
    image.paste((white,) * 3, (32, 0, 64, 40))
    found = read_pictures([with_code_points(image, primaries, transfer, tmp_path / f"a{suffix}")], (40, 64))[0].pixels
    assert np.abs(found[20, 10].astype(int) - (185, 64, 64)).max() <= (3 if suffix == ".png" else 6)
    assert found[20, 50].min() >= (252 if white == 255 else 215), "what is brighter than white has room above it"


def test_code_points_of_srgb_change_nothing_and_outweigh_what_a_png_says_otherwise(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), (185, 64, 64))
    assert (read_pictures([with_code_points(image, 1, 13, tmp_path / "a.png")], 32)[0].pixels == (185, 64, 64)).all()
    image = Image.new("RGBA", (40, 40), (171, 72, 69, 255))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = read_pictures([with_code_points(image, 12, 13, tmp_path / "b.png")], 32)[0].pixels
    assert np.abs(found.astype(int) - (185, 64, 64)).max() <= 2


@pytest.mark.parametrize(("space", "index"), [(2, None), (0xFFFF, "R03")])
@pytest.mark.parametrize(("adobe", "srgb"), [((219, 0, 0), (255, 0, 0)), ((144, 255, 60), (0, 255, 0))])
def test_a_camera_that_says_adobe_rgb_in_exif_alone_is_believed(
    tmp_path: Path, space: int, index: str | None, adobe: tuple[int, ...], srgb: tuple[int, ...]
) -> None:
    image, exif = Image.new("RGB", (40, 40), adobe), Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: space} | ({0xA005: {1: index}} if index else {}))
    image.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    found = read_pictures([tmp_path / "a.jpg"], 32)[0].pixels
    assert np.abs(found.astype(int) - srgb).max() <= 4
