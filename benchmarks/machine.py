"""The machine: restrict the process to one core and one thread, and describe the hardware and software."""

import ctypes
import datetime
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PACKAGES = ("lora_np", "numpy", "torch", "peft", "transformers", "jax", "jaxlib")


AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
}
"""What makes NumPy's BLAS, torch and JAX use the kernels of a processor without AVX-512."""


def pin(*, as_avx2: bool = False) -> None:
    """Restrict this process and its children to one core and one thread, and possibly to the kernels of AVX2.

    Call it before NumPy is imported.
    """
    if "numpy" in sys.modules:
        raise RuntimeError("pin() must run before NumPy is imported")
    os.environ |= dict.fromkeys(THREADS, "1")
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if as_avx2:
        os.environ |= AVX2 | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {AVX2['XLA_FLAGS']}"}
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        # The last core: interrupts and other programs tend to run on the first.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def describe() -> dict[str, str]:
    """What a reader needs to know to interpret the numbers."""
    import numpy as np

    machine = {
        "processor": _cpu_model(),
        "cores": f"{os.cpu_count()}, one of them used, with one thread",
        "caches": _caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "BLAS of NumPy": _blas(np),
    }
    if all(os.environ.get(name) == value for name, value in AVX2.items() if name != "XLA_FLAGS"):
        machine["kernels"] = f"those of AVX2, by {', '.join(f'{name}={value}' for name, value in AVX2.items())}"
    for package in PACKAGES:
        version = _version(package)
        if version:
            machine[package] = version
    if hasattr(os, "getloadavg"):
        machine["load at the start"] = f"{os.getloadavg()[0]:.1f} processes (should be close to 0)"
    machine["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {name: value for name, value in machine.items() if value}


def _version(package: str) -> str:
    if package == "lora_np":
        from lora_np import __version__  # a checkout may not be installed

        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vectors = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return ", ".join(part for part in (names[0] if names else platform.processor(), vectors) if part)


def _caches() -> str:
    """The caches of the first core."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found)


def _blas(np) -> str:
    """The library, and the core name it detected at run time, which determines its kernels."""
    build = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name = f"{build['name']} {build['version']}".removeprefix("scipy-")
    for library in (Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas*"):
        for symbol in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename"):
            core = getattr(ctypes.CDLL(str(library)), symbol, None)
            if core is not None:
                core.restype = ctypes.c_char_p
                return f"{name}, core {core().decode()}"
    return name
