"""The host library: plain C++ behind ctypes, `csd.plugins.build` compiles the same files.

It stands here and not in pyproject.toml, where setuptools calls extension modules experimental.
Without a compiler the package installs without it, and the runtime computes the same in NumPy.
"""

from setuptools import Extension, setup

KERNELS = "plugins/kernels"

setup(
    ext_modules=[
        Extension(
            "csd.plugins._host",
            sources=[f"{KERNELS}/host.cpp", f"{KERNELS}/head.cpp"],
            depends=[f"{KERNELS}/host.h", f"{KERNELS}/head.h", f"{KERNELS}/csd_ops.h"],
            extra_compile_args=["-std=c++17", "-O2", "-ffp-contract=off"],
            language="c++",
            optional=True,
        )
    ]
)
