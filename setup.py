"""Packages, which ``pyproject.toml`` cannot list. A wheel holds ``recipes/`` as ``tiny_audio/recipes/``."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["tiny_audio*"]), "tiny_audio.recipes"])
