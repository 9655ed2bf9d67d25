"""The implementation of each command.

Arguments are parsed in ``tiny_audio/cli.py``, and in ``model_cli.py`` and ``bench/cli.py`` of this package.
"""
