"""Compiles csrc/ with CMake. FASTDIFF_BUILD says how:

auto (default): CPU kernels, and CUDA kernels where there is an nvcc; a failed build is said aloud, and plain torch remains.
cpu, cuda: just that; a failed build is an error.   none: nothing is compiled.

CUDAARCHS, CMake's own variable, says for which GPUs: "90a-real" compiles for Hopper alone; the default is
"80-real;90a-real;90-virtual". FASTDIFF_BUILD_DIR keeps what was compiled; MAX_JOBS says how many compilers run.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODES = ("auto", "cpu", "cuda", "none")
MODE = os.environ.get("FASTDIFF_BUILD", "auto")
if MODE not in MODES:
    sys.exit(f"FASTDIFF_BUILD must be one of {', '.join(MODES)}, got {MODE!r}")

ROOT = Path(__file__).parent.resolve()
PRODUCTS = ("libfastdiff_ops.so", "libfastdiff_ops.dylib", "_C*.so", "_build.json")


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", *sorted(map(str, Path("/usr/local").glob("cuda-*")))[::-1]]
    found = [f"{home}/bin/nvcc" for home in homes if home and os.access(f"{home}/bin/nvcc", os.X_OK)]
    return os.environ.get("CUDACXX") or (found or [shutil.which("nvcc")])[0]


class CMakeBuild(build_ext):
    """Builds both libraries and records in fastdiff/_build.json what was asked for and what came of it."""

    def get_ext_filename(self, fullname: str) -> str:
        return "fastdiff/_build.json"  # setuptools expects one file: the record is the one that every build leaves

    def build_extension(self, ext: Extension) -> None:
        package = Path(self.build_lib, "fastdiff").resolve()
        package.mkdir(parents=True, exist_ok=True)
        _remove_products(package)
        outcome = {"requested": MODE, "compiled": [], "note": ""}
        if MODE != "none":
            try:
                outcome |= self._compile(package)
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                if MODE != "auto":
                    raise
                outcome["note"] = f"the native build failed ({error}); every op runs as plain torch"
        if outcome["note"]:
            print(f"fastdiff: {outcome['note']}", file=sys.stderr)
        (package / "_build.json").write_text(json.dumps(outcome, indent=1) + "\n")

    def _compile(self, package: Path) -> dict:
        nvcc = find_nvcc() if MODE in ("auto", "cuda") else None
        if MODE == "cuda" and not nvcc:
            raise RuntimeError("FASTDIFF_BUILD=cuda needs nvcc: put it on PATH, or set CUDACXX or CUDA_HOME")
        work = Path(os.environ.get("FASTDIFF_BUILD_DIR", self.build_temp)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        import pybind11

        configure = [
            "cmake", "-S", str(ROOT), "-B", str(work), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DFASTDIFF_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        if nvcc:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        if shutil.which("ccache"):
            configure += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("CXX", "CUDA")]
        configure += os.environ.get("CMAKE_ARGS", "").split()
        subprocess.check_call(configure)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.check_call(["cmake", "--build", str(work), "-j", jobs])
        for pattern in PRODUCTS:
            for built in work.glob(pattern):
                shutil.copy2(built, package)
        note = "" if nvcc or MODE == "cpu" else "no nvcc found: CUDA kernels are not compiled, only those for the CPU"
        return {"compiled": ["cpu", "cuda"] if nvcc else ["cpu"], "note": note}

    def get_outputs(self) -> list[str]:
        return [str(p) for p in sorted(self._built())]

    def copy_extensions_to_source(self) -> None:  # an editable install runs from the source folder
        _remove_products(ROOT / "fastdiff")
        for product in self._built():
            shutil.copy2(product, ROOT / "fastdiff")

    def _built(self) -> list[Path]:
        return [p for pattern in PRODUCTS for p in Path(self.build_lib, "fastdiff").glob(pattern)]


def _remove_products(package: Path) -> None:
    """What an earlier build left must not pass for this one's."""
    for pattern in PRODUCTS:
        for old in package.glob(pattern):
            old.unlink()


setup(ext_modules=[Extension("fastdiff._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
