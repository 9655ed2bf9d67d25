"""Decode, down-mix and resample audio files, with limits that protect against hostile files."""
