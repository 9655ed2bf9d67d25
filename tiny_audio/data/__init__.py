"""From indexed utterances to batches: usable clips, planned order and collation."""
