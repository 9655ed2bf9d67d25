"""The web page: record speech or choose a file, and read the text."""
