"""In-tree PEP 517 backend: setuptools, and cmake or ninja as wheels only where the machine has none."""

import os
import re
import shutil
import subprocess

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  a backend re-exports all hooks of the one it extends

CMAKE_AT_LEAST = (3, 24)


def _missing_tools():
    if os.environ.get("FASTDIFF_BUILD", "auto") == "none":
        return []
    tools = [] if shutil.which("ninja") else ["ninja"]
    cmake = shutil.which("cmake")
    text = subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout if cmake else ""
    version = re.search(r"(\d+)\.(\d+)", text)
    if not version or tuple(map(int, version.groups())) < CMAKE_AT_LEAST:
        tools.append("cmake>={}.{}".format(*CMAKE_AT_LEAST))
    return tools


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _missing_tools()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _missing_tools()
