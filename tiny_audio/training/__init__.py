"""Train the model of a recipe on the recipe's clips.

A restarted run continues from the last checkpoint. It gives the same weights as a run that was not interrupted.
"""
