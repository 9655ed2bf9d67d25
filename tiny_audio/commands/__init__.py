"""The work of each command. ``cli.py`` parses the arguments, with ``model_cli.py`` and ``bench/cli.py`` here."""
