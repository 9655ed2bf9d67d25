"""A recipe's model and clips -> trained weights, in checkpoints that a restart continues from, bit for bit."""
