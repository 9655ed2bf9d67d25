"""``TinyAudioModel``, and modules for its prompts, input, decoding, processor and base weights."""
