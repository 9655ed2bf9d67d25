"""The web page: record or choose a file, and read its text."""
