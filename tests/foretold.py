"""What Wan 2.2's bases would need on a GPU, by the planner: `python tests/foretold.py`.

From their published configurations; neither weights nor a GPU are needed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from customttt import backbones, planner
from customttt.backbones.wan import TEXT
from customttt.config import SampleConfig

A14B: dict[str, dict[str, Any]] = {"transformer": {}, "transformer_2": {}, "vae": {}}
FIVE_B: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48,
    },
    "vae": {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12, "out_channels": 12,
        "is_residual": True, "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    },
}  # fmt: skip
"""By part, what their config.json say where it is not the default of diffusers; means and deviations stand in."""
GPU = torch.device("cuda")


def write(folder: Path, parts: dict[str, dict[str, Any]]) -> str:
    """A base's folder of configurations alone."""
    for part, config in {**parts, "text_encoder": dict(TEXT)}.items():
        (folder / part).mkdir(parents=True)
        named = {"_class_name": "WanTransformer3DModel"} if "transformer" in part else {}
        (folder / part / "config.json").write_text(json.dumps({**named, **config}))
    return str(folder)


def foretell(base: str, sample: SampleConfig) -> str:
    """Of a step of the motion with every block recomputed, and of decoding."""
    config = backbones.defaults(base).motion.but(steps=1)
    top = config.layers[-1] + 1
    step = planner.lesson(base, "motion", config, sample.num_frames, sample.sides, top, GPU)
    height, width = sample.sides
    return (
        f"{sample.num_frames} of {width} x {height}: {step.memory / 1e9:.1f} GB to learn the motion, "
        f"{planner.decoding(base, sample, GPU).memory / 1e9:.1f} to decode"
    )


def main() -> None:
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    with tempfile.TemporaryDirectory() as folder:
        for name, parts in (("5B", FIVE_B), ("A14B", A14B)):
            base = write(Path(folder) / name, parts)
            sketch = backbones.sketch(base, GPU)
            counts = [sum(one.numel() for one in part.parameters()) for part in (sketch.network, sketch.vae)]
            sys.stdout.write(f"{name}: {counts[0]:,} parameters of transformer, {counts[1]:,} of VAE\n")
            for aspect in ((1, 1), (16, 9)):
                sys.stdout.write(f"  {foretell(base, sketch.defaults.sample.but(aspect=aspect))}\n")


if __name__ == "__main__":
    main()
