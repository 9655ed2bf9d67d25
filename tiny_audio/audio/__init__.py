"""Decoding, down-mixing and resampling of audio files, with limits for hostile files."""
