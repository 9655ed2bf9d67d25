"""General tools for files, YAML, devices, several processes, retries and the terminal."""
