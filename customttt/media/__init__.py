"""Pictures and clips to `frames`, uint8 (f h w c), and back: the face of the files that know codecs. No tensors."""

from customttt.media.clips import Clip, FilmStrip, Frames, aspect_of, count_frames, read_clip, read_strip
from customttt.media.outputs import check_output, check_place, placed, temporary
from customttt.media.pictures import Picture, passed_over, read_pictures
from customttt.media.pixels import Pixels, Size
from customttt.media.videos import read_frames, read_png, read_recipe, write_png, write_video

__all__ = [
    "Clip", "FilmStrip", "Frames", "Picture", "Pixels", "Size", "aspect_of", "check_output", "check_place",
    "count_frames", "passed_over", "placed", "read_clip", "read_frames", "read_pictures", "read_png",
    "read_recipe", "read_strip", "temporary", "write_png", "write_video",
]  # fmt: skip
