"""The real base models at full size, with random weights, through everything the program does (no pytest).

    python tests/full_size.py --base animatediff --folder /tmp/full                  # a CPU: minutes, up to 24 GB
    python tests/full_size.py --base zeroscope --folder /tmp/full
    python tests/full_size.py --base animatediff --folder /tmp/full --device cuda --frames 16 --size 256 --steps 20

Writes the base as a diffusers folder (FOLDER/BASE, 3 to 5 GB; it is kept and used again, delete it yourself) and prints
how many parameters each part has beside the size that the hub lists. Then opens it, learns an appearance and a motion,
trains at test time, samples and decodes, STEPS steps of each, by the recipe of the base; only frames, size and steps
are smaller. Prints of each phase: seconds in all, those of them that the process had a CPU for, seconds a step (median
without the first, which warms up), and the peak of memory: of the process on a CPU, of what torch allocates on a GPU.
Exits 1 where a number is not finite, nothing moves, or a LoRA is not as large as it should be.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from customttt_cli import output

PAPER = "; the paper says 4 + 4 + 3 at 16 frames of 256 x 256 on an A6000"
MATERIAL = np.random.default_rng(0)


@dataclass
class Phase:
    """When it began and when its steps were reported."""

    began: float = field(default_factory=time.perf_counter)
    worked: float = field(default_factory=time.process_time)
    steps: list[float] = field(default_factory=list)

    def report(self, _: Any) -> None:
        self.steps.append(time.perf_counter())

    @property
    def pace(self) -> float | None:
        """Seconds a step."""
        between = [later - earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)]
        return statistics.median(between) if between else None


@contextmanager
def phase(name: str, cuda: bool) -> Iterator[Phase]:
    """Measure one, and print its line."""
    _forget_peak(cuda)
    running = Phase()
    yield running
    seconds, worked = time.perf_counter() - running.began, time.process_time() - running.worked
    pace = f"{running.pace:9.3f}" if running.pace else " " * 9
    print(f"{name:22} {seconds:9.1f} {worked:9.1f} {pace} {_peak(cuda) / 1e9:9.2f}", flush=True)


def _forget_peak(cuda: bool) -> None:
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif (switch := Path("/proc/self/clear_refs")).exists():  # elsewhere a peak is that of all phases so far
        switch.write_text("5")


def _peak(cuda: bool) -> int:
    """Bytes."""
    if cuda:
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write(base: str, folder: Path) -> None:
    """The base's folder, part by part, unless it is there."""
    output.quiet()
    import published

    print(f"{'part':22} {'parameters':>15} {'GB':>6} {'listed':>6}")
    for name, (listed, each) in published.LISTED[base].items():
        count = published.count(published.on_meta(base, name))
        print(f"{name:22} {count:15,} {count * each / 1e9:6.2f} {listed:6.2f}")
    if not folder.exists():
        with phase("writing", cuda=False):
            published.write_base(base, folder)


def pictures(size: int) -> list[Any]:
    from customttt.media import Picture

    pixels = MATERIAL.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    return [Picture(f"{index}.png", one, (), sha256(one).hexdigest()) for index, one in enumerate(pixels)]


def clip(frames: int, size: int) -> Any:
    from customttt.media import Clip

    pixels = MATERIAL.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    return Clip("clip.mp4", pixels, 8.0, sha256(pixels).hexdigest())


def go_through(base: str, folder: Path, frames: int, size: int, steps: int, cuda: bool) -> bool:
    """Everything the program does; whether all of it is as it should be."""
    from customttt import compose, learn, opening
    from customttt.recipe import Ingredient, VideoRecipe

    print(f"\n{base}, {frames} frames of {size} x {size}, {steps} steps of each")
    print(f"{'phase':22} {'seconds':>9} {'of CPU':>9} {'a step':>9} {'peak GB':>9}")
    with phase("opening", cuda):
        backbone, accelerator = opening.open_accelerated(str(folder))
    recipe = backbone.defaults
    learned, minutes = [], []
    for kind, material in (("appearance", pictures(size)), ("motion", clip(frames, size))):
        config = getattr(recipe, kind).but(steps=steps)
        wording = learn.Wording(kind, "koala" if kind == "appearance" else "swimming", "A koala is swimming.")
        with phase(f"learning the {kind}", cuda) as running:
            learned.append(getattr(learn, kind)(backbone, material, wording, config, accelerator, running.report))
        minutes.append((running.pace or 0) * getattr(recipe, kind).steps / 60)
    ingredients = [Ingredient(one.concept.name, one.concept.phrase, one.concept.name) for one in learned]
    wish = VideoRecipe(
        *ingredients, prompt="on Mars", base=str(folder), base_fingerprint=backbone.fingerprint,
        ttt=recipe.ttt.but(steps=steps),
        sample=recipe.sample.but(num_frames=frames, size=size, num_inference_steps=steps),
    )  # fmt: skip
    pair = {"appearance": learned[0].weights, "motion": learned[1].weights}
    with phase("test-time training", cuda) as running:
        adapted = compose.adapt(backbone, pair, wish, accelerator, running.report)
    minutes.append((running.pace or 0) * recipe.ttt.steps / 60)
    with phase("sampling and decoding", cuda) as running:
        video = compose.render(backbone, adapted, wish, running.report)
    print("\nat this pace the whole recipe takes {:.1f} + {:.1f} + {:.1f} minutes".format(*minutes), end="")
    print(f" of learning and test-time training{PAPER if base == 'animatediff' else ''}")
    return judge(base, pair, adapted, video, (frames, size, size, 3))


def judge(base: str, pair: Any, adapted: Any, video: Any, shape: tuple[int, ...]) -> bool:
    """Say of the LoRAs and of the video whether they are what they should be."""
    from published import LORAS

    counts = tuple(sum(weight.numel() for weight in weights.values()) for weights in pair.values())
    moved = [max(float((adapted[kind][key] - old[key]).abs().max()) for key in old) for kind, old in pair.items()]
    finite = all(
        bool(weight.isfinite().all()) for weights in (*pair.values(), *adapted.values()) for weight in weights.values()
    )
    print(f"LoRA parameters {counts[0]:,} + {counts[1]:,} = {sum(counts):,}")
    print(f"test-time training moved them by at most {moved[0]:.1e} and {moved[1]:.1e}; all finite: {finite}")
    print(f"video {video.shape} {video.dtype}, from {video.min()} to {video.max()}, mean {video.mean():.1f}")
    return finite and counts == LORAS[base] and video.shape == shape and all(moved) and int(np.ptp(video)) > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=["animatediff", "zeroscope"], required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    if asked.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    folder = asked.folder / asked.base
    write(asked.base, folder)
    return 0 if go_through(asked.base, folder, asked.frames, asked.size, asked.steps, asked.device == "cuda") else 1


if __name__ == "__main__":
    sys.exit(main())
