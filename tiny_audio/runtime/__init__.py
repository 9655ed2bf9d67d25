"""General tools, not specific to speech: files, devices, YAML, retries, terminal output and messages of libraries."""
