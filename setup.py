"""The packages of the wheel. All other settings are in pyproject.toml, which cannot rename a package that it finds."""

from setuptools import find_packages, setup

# `scripts` would collide with other projects' folder of that name, so that it is installed under another.
programs = [
    name.replace("scripts", "frostline_programs", 1) for name in find_packages(include=["scripts", "scripts.*"])
]
setup(
    packages=[*find_packages(include=["engine", "engine.*", "compat_v1", "compat_v1.*"]), *programs],
    package_dir={"frostline_programs": "scripts"},
)
