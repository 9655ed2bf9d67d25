"""Decoding, resampling and down-mixing audio files, with limits for hostile ones."""
