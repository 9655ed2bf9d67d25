"""Datasets on the Hugging Face hub: files of a pinned revision, ranges of them, and a bounded cache on disk."""
