"""Build encoders and decoders from checkpoints in Hugging Face format: architectures, weights, LoRA and packed rows."""
