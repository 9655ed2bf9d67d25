"""``TinyAudioModel``: prompt, CTC head, splicing, decoding, drafts, processor and base weights."""
