"""Package discovery: every folder with modules in the four code folders is a package.

`pyproject.toml` has everything else; it cannot discover packages below a prefix.
"""

from setuptools import find_packages, setup

FOLDERS = ("agent", "envs", "inner_models", "experiments")
WINGS = {folder: ["", *(f".{wing}" for wing in find_packages(folder))] for folder in FOLDERS}

setup(packages=[f"pacesetter.{folder}{wing}" for folder in FOLDERS for wing in WINGS[folder]])
