"""A model -> a Hugging Face folder that loads without this package, its card and its upload; and such a folder -> a
model."""
