"""Train the model of a recipe on the recipe's clips.

A restarted run continues from the last checkpoint, and gives the same weights as an uninterrupted run.
"""
