"""The ffmpeg that imageio-ffmpeg brings: what it says of a clip, and what it decodes. The only file that runs it.

ffmpeg decides what is a clip, among the containers that cannot name another file: no playlist, script of files or
picture sequence is opened, and of protocols nothing but `file`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from customttt.errors import MediaError
from customttt.limits import DECODER_SECONDS, DECODER_SECONDS_A_SECOND, MAX_DECODER, MAX_PIXELS
from customttt.media.pixels import Size

Done = subprocess.CompletedProcess[bytes]

CONTAINERS = (
    "mov", "matroska", "avi", "flv", "asf", "mpegts", "mpeg", "ogg", "mxf", "gxf", "nut", "ivf", "dv", "rm", "wtv",
    "yuv4mpegpipe", "apng", "h264", "hevc", "obu", "m4v", "mpegvideo",
)  # fmt: skip
"""ffmpeg's demuxers that read the one file they are given."""
BLIND = dict.fromkeys(("h264", "hevc", "m4v", "mpegvideo", "obu"), inf) | dict.fromkeys(("mpegts", "mpeg", "rm"), 120.0)
"""Seconds before a start from which on those are decoded that ffmpeg cannot seek in, or not to where a picture is
whole: it would begin at their own beginning, later than asked, or find nothing."""
SAFE = (
    "-protocol_whitelist", "file", "-format_whitelist", ",".join(CONTAINERS), "-max_pixels", str(MAX_PIXELS),
    "-threads", "4",
)  # fmt: skip
"""Each thread of a decoder holds frames of its own."""
LOG_BYTES = 1 << 20
"""Bytes of what ffmpeg says of a file that are read."""
FRAMES = ("-map", "0:V:0", "-fps_mode", "passthrough")
"""Every frame of the first stream that is not a cover, once."""
WAITED = 4.0
"""How many times as long as it may compute is waited for ffmpeg, whatever holds it up."""
_NO_CLIP = ("not on whitelist", "detected only with low score")
_DECODERS = {
    ("vp8", True): ("-c:V", "libvpx"),
    ("vp9", True): ("-c:V", "libvpx-vp9"),
    ("theora", False): ("-threads", "1"),
}
"""By codec and whether alpha is hidden beside it, which ffmpeg's own leave out; theora's threads race each other."""
_UNKNOWN = re.compile(r"decoder found for|Decoder .*not found|patches welcome|not implemented|no path between")
_NO_MEMORY = re.compile(r"Cannot allocate memory|get_buffer\(\) failed|[Ee]rror allocating")
_ALPHA = re.compile(r"yuva|rgba|bgra|argb|abgr|gbrap|ya\d|pal8|ayuv|vuya|uyva")
_DETAILS = r"(?:\(((?:[^()]|\([^()]*\))*)\))?"
_STREAM = re.compile(rf"^  Stream #0:\d.*?: Video: (\w+).*?, ([a-z]\w*){_DETAILS}, (\d+)x(\d+)(.*)$", re.MULTILINE)
_INPUT = re.compile(r"^Input #0, (\w+)", re.MULTILINE)
_LENGTH = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)", re.MULTILINE)
_RATE = re.compile(r", ([\d.]+) fps")
_PICTURES = re.compile(r"^  Stream #0:\d.*?: Video: (?!.*\(attached pic\))", re.MULTILINE)
_COLOURS = re.compile(r"([^ ,/]+)/([^ ,/]+)/([^ ,/]+)|(bt2020)")
_HDR = ("smpte2084", "arib-std-b67")
_WIDE = ("bt2020", "smpte431", "smpte432")
"""Primaries of SDR that reach further than those of BT.709, as those of screens (Display P3) do."""
_MATRIX = re.compile(r"(?<!/)(bt709|bt2020|smpte170m|smpte240m|bt470bg|fcc|ycgco|ictcp|gbr)")
"""The first of a stream's three colours, or the one name that is all three; primaries and transfer tell no matrix."""
HD = 1280, 720
"""Width and height, of which one is enough."""
_ON_WHITE = "format=rgba,split[a][b];[a]drawbox=c=white:t=fill:replace=1[c];[c][b]overlay=format=rgb"
_WHITE = 203
"""cd/m2 of white paper in HDR (ITU-R BT.2408); what is brighter is rolled off."""


@dataclass(frozen=True)
class Stream:
    """What a clip's pictures are like."""

    decoder: Sequence[str]
    """Options of the decoder, where ffmpeg's own choice would not do."""
    alpha: bool
    colours: tuple[str, str, str] | None
    """Matrix, primaries and transfer of what is not in BT.709: PQ, HLG, or SDR of a wider gamut."""
    untold: bool = False
    """Whether it is as large as HD and does not say its matrix, which is that of HD then; ffmpeg takes that of SD."""
    pixels: int = 0
    """Of a frame; 0 where that is not known."""
    interlaced: bool = False
    """Whether each frame holds two moments, one in its even and one in its odd lines."""
    blind: float = 0.0
    """Seconds before a start from which on it is decoded."""
    seconds: float = 0.0
    """How long the clip is, as its container tells; 0 where that does not."""
    rate: float = 0.0
    """Mean number of frames a second, likewise."""

    @property
    def whole(self) -> str:
        """The filter that must see all frames before some are chosen, with a comma; or nothing."""
        return "bwdif=mode=send_frame:deint=interlaced," * self.interlaced

    def filters(self, size: Size) -> str:
        """From a decoded frame to `size`: square pixels in BT.709 on white, the centre cropped."""
        height, width = size
        scale = f"scale='max({width},round({height}*dar))':'max({height},round({width}/dar))':flags=lanczos"
        parts = [scale, f"crop={width}:{height}", "setsar=1"]
        if self.alpha:
            parts.insert(0, _ON_WHITE)
        if self.untold:
            parts.insert(0, "setparams=colorspace=bt709")
        if self.colours:
            parts.append(_in_bt709(*self.colours))
        return ",".join(parts)


def _in_bt709(matrix: str, primaries: str, transfer: str) -> str:
    """From PQ, HLG or a wide gamut to BT.709; where a clip names no primaries, they are those that HDR has."""
    bright, untold = transfer in _HDR, ("unknown", "reserved")
    known = ("bt2020nc" if bright else "bt709") if matrix in untold else matrix
    space = f"setparams=colorspace={known}:color_trc={transfer if bright else 'bt709'}"
    space += f":color_primaries={'bt2020' if primaries in untold else primaries}"
    light = f"zscale=t=linear:npl={_WHITE}" if bright else "zscale=t=linear"
    rolled = "tonemap=mobius:param=0.5:desat=0," * bright
    return (
        f"format=yuv444p10|gbrp10,{space},{light},format=gbrpf32le,zscale=p=bt709,"
        f"{rolled}zscale=t=bt709:m=gbr:r=pc,format=gbrp"
    )


def _colours(details: str) -> tuple[str, str, str] | None:
    """Those of a stream, if they are not in BT.709."""
    tags = _COLOURS.search(details)
    if not tags:
        return None
    matrix, primaries, transfer = (tags[1], tags[2], tags[3]) if tags[1] else ("bt2020nc", "bt2020", "bt709")
    return (matrix, primaries, transfer) if transfer in _HDR or primaries in _WIDE else None


PLAIN = Stream((), False, None)


def probe(path: Path) -> Stream:
    """What ffmpeg says of a clip. Raises MediaError for what is none, or has no pictures."""
    log = _log_of(_held(("-nostdin", *SAFE, "-i", f"file:{path}"), DECODER_SECONDS, 0, "info"), path)
    if "\nInput #0, " not in f"\n{log}":
        raise _unopened(path, log)
    streams = [stream for stream in _STREAM.finditer(log) if "(attached pic)" not in stream[6]]
    if not streams and not _PICTURES.search(log):
        raise MediaError(f"'{path.name}' has no video in it; give a clip with pictures.")
    if not streams:
        return PLAIN  # and decoding will say what is wrong with it
    codec, pixel_format, details, width, height, rest = streams[0].groups()
    about = log[streams[0].end() :].partition("\n  Stream #")[0]  # what it says of this stream
    hidden = codec in ("vp8", "vp9") and bool(re.search(r"^ +alpha_mode +: 1", about, re.IGNORECASE | re.MULTILINE))
    alpha = hidden or _ALPHA.match(pixel_format) is not None
    details = details or ""
    untold = pixel_format.startswith("yuv") and not _MATRIX.search(details)
    untold = untold and (int(width) >= HD[0] or int(height) >= HD[1])
    return Stream(
        _DECODERS.get((codec, hidden), ()), alpha, _colours(details), untold, int(width) * int(height),
        interlaced=" first" in details or codec == "dvvideo",  # of which ffmpeg does not say so
        blind=BLIND.get(name[1], 0.0) if (name := _INPUT.search(log)) else 0.0,
        seconds=_seconds(*length.groups()) if (length := _LENGTH.search(log)) else 0.0,
        rate=float(rate[1]) if (rate := _RATE.search(rest)) else 0.0,
    )  # fmt: skip


def _seconds(hours: str, minutes: str, seconds: str) -> float:
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _unopened(path: Path, log: str) -> Exception:
    if any(words in log for words in _NO_CLIP) or not re.search(r"\[(in#0|[a-z0-9,]+) @ [^]]*\] (?!Error)", log):
        return MediaError(f"'{path.name}' is no clip that can be read; give one such as an mp4, mov, webm, mkv or gif.")
    return _undecoded(path, log)


def decode(
    path: Path,
    stream: Stream,
    output: Sequence[str],
    wanted: int,
    start: float = 0.0,
    seconds: float | None = None,
    most: int = LOG_BYTES,
) -> bytes:
    """What ffmpeg makes of the frames from `start` on, `wanted` at most, in at most `most` bytes. Raises MediaError.

    Its times begin at `start`, or as much earlier as the stream is blind.
    """
    lead = min(start, stream.blind)
    begin = ("-ss", f"{start - lead:.6f}") if start > lead else ()  # what has no times cannot be sought in
    until = () if seconds is None else ("-t", f"{seconds + lead:.6f}")
    shown = lead + (wanted / 8 if seconds is None else min(wanted / 8, seconds))
    return read(path, ("-xerror", *stream.decoder, *begin), (*FRAMES, *until, *output), most, shown)


def read(path: Path, before: Sequence[str], output: Sequence[str], most: int, shown: float = 0.0) -> bytes:
    """What ffmpeg writes to stdout of so many seconds that are `shown`. Raises MediaError."""
    command = ("-nostdin", *SAFE, *before, "-i", f"file:{path}", *output, "-")
    done = _held(command, DECODER_SECONDS + shown * DECODER_SECONDS_A_SECOND, most)
    log = _log_of(done, path)
    if done.returncode:
        raise _undecoded(path, log)
    return done.stdout


def _held(arguments: Sequence[str], seconds: float, most: int, level: str = "error") -> Done:
    """Run ffmpeg on what a stranger made, held to MAX_DECODER of memory, a time, and `most` bytes of output."""
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(_command(*arguments, level=level), stdout=subprocess.PIPE, stderr=log) as process:
            _hold(process.pid, ceil(seconds))
            late = threading.Timer(WAITED * seconds, process.kill)
            late.start()
            try:
                content = process.stdout.read(most + 1) if process.stdout else b""
                if len(content) > most:
                    process.kill()
                code = process.wait()
            finally:
                late.cancel()
        log.seek(0)
        return subprocess.CompletedProcess(process.args, code, content, log.read(LOG_BYTES))


def _hold(process: int, seconds: int) -> None:
    """Bound what a process may take, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    if hasattr(resource, "prlimit"):
        with suppress(OSError):  # it has ended already
            resource.prlimit(process, resource.RLIMIT_DATA, (MAX_DECODER, MAX_DECODER))
            resource.prlimit(process, resource.RLIMIT_CPU, (seconds, seconds))


def _log_of(done: Done, path: Path) -> str:
    """What ffmpeg said. Raises MediaError where it was ended for taking too much."""
    if done.returncode < 0:
        raise MediaError(f"'{path.name}' takes too long or too much memory to decode; make it smaller or shorter.")
    return done.stderr.decode(errors="replace")


def _undecoded(path: Path, log: str) -> Exception:
    if _NO_MEMORY.search(log):
        gigabytes = MAX_DECODER / 2**30
        return MediaError(f"'{path.name}' takes more than {gigabytes:g} GB to decode; make its frames smaller.")
    if "max pixel count" in log or "max_pixels" in log:
        return Image.DecompressionBombError()
    if _UNKNOWN.search(log):
        return MediaError(f"'{path.name}' is in a format that is not known here ({reason(log)}); convert it to mp4.")
    return MediaError(f"'{path.name}' cannot be read, it is cut off or damaged ({reason(log)}).")


def run(*arguments: str, stdin: bytes = b"") -> Done:
    """Run ffmpeg to its end."""
    return subprocess.run(_command(*arguments), input=stdin, capture_output=True, check=False)


def _command(*arguments: str, level: str = "error") -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", level, *arguments]


def reason(log: str) -> str:
    """The first sentence of what ffmpeg complained about."""
    lines = log.splitlines() or ["ffmpeg gives no reason"]
    return re.sub(r"^(\[[^]]*\] *)+", "", lines[0])
