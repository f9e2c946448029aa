"""Concepts that travel: one-file concepts, and the LoRA files of other programs."""
