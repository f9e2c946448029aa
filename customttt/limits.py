"""How much of anything is taken: every bound on what users type and on what strangers' files may ask for.

Each is far above what a real picture, clip, recipe or LoRA has, and low enough that no file takes more than 2 GB of
memory or 30 seconds before it is refused in a sentence. docs/limits.md is this table for people.
"""

from __future__ import annotations

# -- settings, from wherever they come: the command line, a recipe in a stranger's video, a base's folder

MAX_SUBJECTS = 16
"""Of one video."""
MAX_SEED = 2**64 - 1
"""The largest that torch's generators take."""
MAX_STEPS, MAX_BATCH, MAX_RANK = 1_000_000, 1024, 4096
MAX_FRAMES, MAX_SIZE, MAX_FPS, MAX_MAGNIFY = 4096, 4096, 240, 16
"""Frames of a video, pixels of a side, frames a second, times that a file shows frames larger."""
MAX_ASPECT = 4
"""Times that a video's longer side is as long as its shorter one."""

# -- text: characters

MAX_NAME = 64
"""Of a concept."""
MAX_PROMPT = 1000
MAX_TEXT = 4096
"""Of anything else that is text in a recipe or a manifest, such as the folder of a base."""
MAX_PHRASE = 64
"""Of a LoRA's trigger phrase that can stand in a sentence as a noun; longer ones are prompts or lists of tags."""

# -- text: bytes

MAX_CAPTIONS = 1 << 18
"""Of the captions beside one picture."""
MAX_NOTE = 1 << 20
"""Of what a video says of itself, its recipe in it."""
MAX_MANIFEST = 25_000_000
"""Of a concept's manifest: the losses of a million steps."""
MAX_BRACKETS, MAX_NESTING = 200_000, 50
"""Lists and objects of JSON in all, and within each other."""

# -- grids and galleries

MAX_JOBS = 1_000_000
"""Of one grid."""
MAX_GRID_FILE = 1_000_000
"""Characters of a grid's file, or of a file of prompts."""
MAX_GALLERY = 10_000
"""Videos of one page."""

# -- pictures and clips

MIN_SIDE = 32
"""Pixels of a picture's shorter side."""
MAX_PIXELS = 100_000_000
"""Of one picture or frame."""
MAX_PICTURES = 200
MAX_PROFILE = 1 << 26
"""Bytes of a colour profile, unpacked."""
MAX_SECONDS = 60.0
"""Of a clip that are decoded."""
MAX_COUNTED = 60 * 240
"""Frames of a clip that are counted."""
MAX_DECODED = 5_000_000_000
"""Pixels of a clip's frames, all together, within the seconds that are wanted: 8K at 60 a second for two of them."""
MAX_ANIMATED = 500_000_000
"""Pixels of a gif's, webp's or avif's frames, all together, up to the last that is needed."""
MAX_VIDEO = 1 << 28
"""Bytes of all frames of a video that is read back whole."""
MAX_DECODER = 3 << 29
"""Bytes of memory that ffmpeg may take, where the system can hold it to that (Linux)."""
DECODER_SECONDS, DECODER_SECONDS_A_SECOND = 12.0, 3.0
"""Of a core's time that ffmpeg may take, and how much more for every second of a clip that is wanted."""

# -- LoRAs of other programs

MAX_LORA = 1 << 30
"""Bytes of a file: 40 times the paper's LoRA; a whole checkpoint is larger."""
MAX_HEADER = 10_000_000
"""Bytes of a safetensors header."""
MAX_TENSORS = 50_000
"""Tensors of a file, and members of an archive."""
MAX_KEY = 1000
"""Characters of a tensor's name."""
MAX_MATRICES = 1 << 30
"""Bytes of a LoRA's matrices, in float32 at one rank."""
MAX_LOW_RANK = 1280
"""The width of the widest attention of Stable Diffusion 1.5: more than that is no low rank."""
MAX_CONFIG = 1_000_000
"""Bytes of an adapter's configuration."""
MAX_PATTERN, MAX_PATTERNS, MAX_WILD = 200, 2000, 16
"""Characters of a pattern in it, patterns of a field, and how many of them may have a repetition."""
MAX_PICKLED, MAX_PICKLED_DEPTH = 1_000_000, 100
"""What a pickle builds, counted as often as it is put into something else; and how deep it lies in there."""
