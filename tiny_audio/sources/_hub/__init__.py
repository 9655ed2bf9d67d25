"""Datasets on the Hugging Face hub: requests, the files of a split at a pinned commit, and reads of byte ranges."""
