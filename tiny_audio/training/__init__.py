"""Train a recipe's model on its clips. A restart continues from the last checkpoint and gives the same weights."""
