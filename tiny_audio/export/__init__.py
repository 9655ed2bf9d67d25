"""A model -> a Hugging Face folder that loads without this package, with a card; and such a folder -> a model."""
