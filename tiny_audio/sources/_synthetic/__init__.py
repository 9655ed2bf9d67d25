"""Synthetic speech: sentences from small grammars or a text file, spoken by espeak-ng in worker processes."""
