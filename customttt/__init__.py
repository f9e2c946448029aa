"""customttt: teach a text-to-video model a subject and a movement, and compose them by test-time training.

The data flows one way:

    pictures ─ media ─ latents ─ train ─ lora ─┐
                                               ├─ library ─ ttt ─ sampling ─ decode ─ media ─ video
    clip ───── media ─ latents ─ train ─ lora ─┘

Paper: CustomTTT (Bi et al., AAAI 2025), arXiv 2412.15646. This package never imports torch at the top: `Library` and
`Concept` answer in milliseconds; the modules below `media` bring the tensors when they are asked for.
"""

from customttt.concept import Concept
from customttt.errors import CustomTTTError
from customttt.library import Library

__version__ = "0.1.0"
__all__ = ["Concept", "CustomTTTError", "Library", "__version__"]
