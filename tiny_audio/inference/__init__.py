"""Transcribe waveforms of any length: chunking, hallucination filters, word times and subtitles."""
