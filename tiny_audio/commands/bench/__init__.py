"""Is another projector better, and what does it cost: timed alone, and trained under one recipe."""
