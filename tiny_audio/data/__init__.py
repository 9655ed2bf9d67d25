"""From indexed utterances to batches: the usable clips, the planned order, collation."""
