"""Waveforms of any length -> timed text: transcriber, pipeline, chunking, filters, word times and subtitles."""
