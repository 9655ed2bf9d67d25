"""The work of each command. ``cli.py`` parses the arguments."""
