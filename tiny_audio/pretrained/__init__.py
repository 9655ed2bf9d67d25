"""Checkpoints in Hugging Face format -> parts: known architectures, weights, LoRA, packed rows."""
