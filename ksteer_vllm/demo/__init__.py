"""A small world to show steering in: a corpus in six tones, an exact reader of it, and a tiny chat model."""

from pathlib import Path
from typing import Final

__all__ = ["MODEL_DIR"]

MODEL_DIR: Final = Path(__file__).parent / "model"
"""Folder of the shipped chat model, in the form transformers and vLLM load."""
