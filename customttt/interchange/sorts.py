"""What else goes by the name of LoRA: told apart by its keys, so that it is refused by its name. Knows no files.

Only a plain LoRA of the base at hand, W + scale * B A, can be taken as it is. Names as LyCORIS, PEFT,
kohya-ss/sd-scripts, ComfyUI and the trainers of transformers write them.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from customttt.errors import DamagedError

PLAIN = "have the program that made it save a plain LoRA"
_OTHERS = (
    (r"[._](dora_scale|lora_magnitude_vector)\b", "a DoRA"),
    (r"\.hada_[wt][12]", "a LoHa"),
    (r"\.lokr_[wt][12]", "a LoKr"),
    (r"\.(oft_(blocks|diag|R|r|s)|boft_[RrSs])\b", "an OFT"),
    (r"\.(on_input$|ia3_l\b)", "an (IA)3"),
    (r"\.vera_lambda_[bd]\b", "a VeRA"),
    (r"\.[ab][12]\.weight$", "a GLoRA"),
    (r"[._]lora[._](up|down|A|B)(\.[^.]+)?\.bias$", "a LoRA with biases"),
    (r"\.(diff|diff_b|w_norm|b_norm|set_weight)$", "a file of whole differences of weights"),
    (r"(^|\.)(scaled_fp8$|(scale_weight|weight_scale|scale_input)$)", "a file in scaled fp8"),
    (r"\.lora_mid\.weight$|[._]resnets[._]\d+[._]\w*conv|[._](down|up)samplers[._]", "a LoCon (of convolutions, too)"),
)
"""(in a key, what the file is)."""
_WRAPPED = (
    r"(?:(?:base_model\.model|module|model|diffusion_model|transformer(?:_2)?|unet)\.|lora_unet_|lora_transformer_)*"
)
_BASES = (
    (r"lora_te2_|text_encoder_2\.", "Stable Diffusion XL or another base of two text encoders"),
    (rf"{_WRAPPED}(input_blocks|middle_block|output_blocks)[._]", "Stable Diffusion XL, or under names like its own"),
    (rf"{_WRAPPED}joint_blocks[._]\d", "a transformer base such as Stable Diffusion 3"),
    (rf"{_WRAPPED}single_transformer_blocks[._]\d", "a transformer base such as Flux"),
    (rf"{_WRAPPED}(double|single)_blocks[._]\d", "a transformer base such as Flux or HunyuanVideo"),
    (rf"{_WRAPPED}transformer_blocks[._]\d", "a transformer base such as LTX-Video, CogVideoX or Flux"),
    (rf"{_WRAPPED}blocks[._]\d", "a transformer base such as Wan"),
    (rf"{_WRAPPED}(layers|visual_transformer_blocks)[._]\d", "a transformer base"),
    (rf"{_WRAPPED}(down_blocks|mid_block|up_blocks)[._]", "a U-Net such as AnimateDiff's or Stable Diffusion's"),
)
"""(how a key begins, of what base the LoRA is)."""


def check(keys: Collection[str], modules: Collection[str] = ()) -> None:
    """Raises DamagedError, a part of a sentence, where keys tell that they are no plain LoRA of a base with these."""
    for pattern, what in _OTHERS:
        if any(re.search(pattern, key) for key in keys):
            raise DamagedError(f"it is {what}, and only plain LoRAs are read; {PLAIN}")
    if keys and not any("lora" in key.lower() for key in keys):
        raise DamagedError(f"it holds no LoRA but other weights, such as {min(keys)!r}; give a LoRA")
    for pattern, base in _BASES:
        own = any(re.match(pattern, module) for module in modules)
        if not own and any(re.match(pattern, key) for key in keys):
            raise DamagedError(f"it is a LoRA of {base}, and does not fit this one; use one for this base")
