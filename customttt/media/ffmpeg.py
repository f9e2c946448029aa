"""The ffmpeg that imageio-ffmpeg brings: what it says of a clip, and what it decodes. The only file that runs it.

ffmpeg decides what is a clip, among the containers that cannot name another file: no playlist, script of files or
picture sequence is opened, and of protocols nothing but `file`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from customttt.errors import MediaError
from customttt.media.pixels import MAX_PIXELS, Size

CONTAINERS = (
    "mov", "matroska", "avi", "flv", "asf", "mpegts", "mpeg", "ogg", "mxf", "gxf", "nut", "ivf", "dv", "rm", "wtv",
    "yuv4mpegpipe", "apng", "h264", "hevc", "obu", "m4v", "mpegvideo",
)  # fmt: skip
"""ffmpeg's demuxers that read the one file they are given."""
SAFE = ("-protocol_whitelist", "file", "-format_whitelist", ",".join(CONTAINERS), "-max_pixels", str(MAX_PIXELS))
FRAMES = ("-map", "0:V:0", "-fps_mode", "passthrough")
"""Every frame of the first stream that is not a cover, once."""
_NO_CLIP = ("not on whitelist", "detected only with low score")
_DECODERS = {
    ("vp8", True): ("-c:V", "libvpx"),
    ("vp9", True): ("-c:V", "libvpx-vp9"),
    ("theora", False): ("-threads", "1"),
}
"""By codec and whether alpha is hidden beside it, which ffmpeg's own leave out; theora's threads race each other."""
_UNKNOWN = re.compile(r"decoder found for|Decoder .*not found|patches welcome|not implemented|no path between")
_ALPHA = re.compile(r"yuva|rgba|bgra|argb|abgr|gbrap|ya\d|pal8|ayuv|vuya|uyva")
_STREAM = re.compile(r"^  Stream #0:\d.*?: Video: (\w+).*?, ([a-z]\w*)(?:\(([^)]*)\))?, \d+x\d+(.*)$", re.MULTILINE)
_PICTURES = re.compile(r"^  Stream #0:\d.*?: Video: (?!.*\(attached pic\))", re.MULTILINE)
_HDR = re.compile(r"([^ ,/]+)/([^ ,/]+)/(smpte2084|arib-std-b67)")
_ON_WHITE = "format=rgba,split[a][b];[a]drawbox=c=white:t=fill:replace=1[c];[c][b]overlay=format=rgb"
_WHITE = 203
"""cd/m2 of white paper in HDR (ITU-R BT.2408); what is brighter is rolled off."""


@dataclass(frozen=True)
class Stream:
    """What a clip's pictures are like."""

    decoder: Sequence[str]
    """Options of the decoder, where ffmpeg's own choice would not do."""
    alpha: bool
    hdr: tuple[str, str, str] | None
    """Matrix, primaries and transfer of PQ or HLG."""

    def filters(self, size: Size) -> str:
        """From a decoded frame to `size`: square pixels in BT.709 on white, the centre cropped."""
        height, width = size
        scale = f"scale='max({width},round({height}*dar))':'max({height},round({width}/dar))':flags=lanczos"
        parts = [scale, f"crop={width}:{height}", "setsar=1"]
        if self.alpha:
            parts.insert(0, _ON_WHITE)
        if self.hdr:
            parts.append(_tone_mapped(*self.hdr))
        return ",".join(parts)


def _tone_mapped(matrix: str, primaries: str, transfer: str) -> str:
    """From PQ or HLG to BT.709; where a clip names no primaries, they are those that HDR has."""
    known = "gbr" if matrix == "gbr" else "bt2020nc" if matrix in ("unknown", "reserved") else matrix
    space = f"setparams=colorspace={known}:color_trc={transfer}"
    space += f":color_primaries={'bt2020' if primaries in ('unknown', 'reserved') else primaries}"
    return (
        f"format=yuv444p10|gbrp10,{space},zscale=t=linear:npl={_WHITE},format=gbrpf32le,zscale=p=bt709,"
        "tonemap=mobius:param=0.5:desat=0,zscale=t=bt709:m=gbr:r=pc,format=gbrp"
    )


PLAIN = Stream((), False, None)


def probe(path: Path) -> Stream:
    """What ffmpeg says of a clip. Raises MediaError for what is none, or has no pictures."""
    said = run("-nostdin", *SAFE, "-i", f"file:{path}", level="info").stderr.decode(errors="replace")
    if "\nInput #0, " not in f"\n{said}":
        raise _unopened(path, said)
    streams = [found for found in _STREAM.finditer(said) if "(attached pic)" not in found[4]]
    if not streams and not _PICTURES.search(said):
        raise MediaError(f"'{path.name}' has no video in it; give a clip with pictures.")
    if not streams:
        return PLAIN  # and decoding will say what is wrong with it
    codec, pixel_format, details, _ = streams[0].groups()
    about = said[streams[0].end() :].partition("\n  Stream #")[0]  # what is said of this stream
    hidden = codec in ("vp8", "vp9") and bool(re.search(r"^ +alpha_mode +: 1", about, re.IGNORECASE | re.MULTILINE))
    alpha = hidden or _ALPHA.match(pixel_format) is not None
    hdr = _HDR.search(details or "")
    return Stream(_DECODERS.get((codec, hidden), ()), alpha, hdr and (hdr[1], hdr[2], hdr[3]))


def _unopened(path: Path, said: str) -> Exception:
    if any(words in said for words in _NO_CLIP) or not re.search(r"\[(in#0|[a-z0-9,]+) @ [^]]*\] (?!Error)", said):
        return MediaError(f"'{path.name}' is no clip that can be read; give one such as an mp4, mov, webm, mkv or gif.")
    return _undecoded(path, said)


def decode(
    path: Path, stream: Stream, output: Sequence[str], start: float = 0.0, seconds: float | None = None
) -> bytes:
    """What ffmpeg makes of the frames from `start` on. Raises MediaError."""
    begin = ("-ss", f"{start:.6f}") if start else ()  # what has no times cannot be sought in
    until = () if seconds is None else ("-t", f"{seconds:.6f}")
    return read(path, ("-xerror", *stream.decoder, *begin), (*FRAMES, *until, *output))


def read(path: Path, before: Sequence[str], output: Sequence[str]) -> bytes:
    """What ffmpeg writes to stdout. Raises MediaError."""
    done = run("-nostdin", *SAFE, *before, "-i", f"file:{path}", *output, "-")
    if done.returncode:
        raise _undecoded(path, done.stderr.decode(errors="replace"))
    return done.stdout


def _undecoded(path: Path, said: str) -> Exception:
    if "max pixel count" in said or "max_pixels" in said:
        return Image.DecompressionBombError()
    if _UNKNOWN.search(said):
        return MediaError(f"'{path.name}' is in a format that is not known here ({reason(said)}); convert it to mp4.")
    return MediaError(f"'{path.name}' cannot be read, it is cut off or damaged ({reason(said)}).")


def run(*arguments: str, stdin: bytes = b"", level: str = "error") -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg to its end."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", level, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def reason(said: str) -> str:
    """The first sentence of what ffmpeg complained about."""
    lines = said.splitlines() or ["ffmpeg gives no reason"]
    return re.sub(r"^(\[[^]]*\] *)+", "", lines[0])
