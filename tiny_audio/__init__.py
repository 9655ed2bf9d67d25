"""Tiny Audio: speech recognizers from a pretrained encoder, a trained projector and a language model."""

__version__ = "0.1.0"
