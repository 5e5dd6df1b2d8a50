"""advisor: the fastest way to run a Hugging Face transformers model on your GPU that is still right, with the proof."""

__version__ = "0.1.0"
