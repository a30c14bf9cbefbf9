"""Answers from a model: prompts in chunks, decode steps, sampling, stopping, streaming."""

from keyhole.generation.answers import generate
from keyhole.generation.loading import Loaded, load_model
from keyhole.generation.reader import Answer

__all__ = ["Answer", "Loaded", "generate", "load_model"]
