"""Synthetic speech: sentences from small grammars, spoken by espeak-ng in worker processes."""
