"""What each command does. ``cli.py`` parses its arguments."""
