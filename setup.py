"""List the packages, because ``pyproject.toml`` cannot. A wheel contains ``recipes/`` as ``tiny_audio/recipes/``."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["tiny_audio*"]), "tiny_audio.recipes"])
