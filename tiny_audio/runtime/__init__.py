"""Files, devices, YAML, library noise and terminal columns. Nothing here is about speech."""
