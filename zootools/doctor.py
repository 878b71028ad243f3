"""Check whether this machine can build zoos. Nothing here imports torch, which would take seconds."""

import ctypes
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from zootools import __version__
from zootools.errors import SpecError
from zootools.images.shapes import find_images
from zootools.native.compiler import INSTRUCTION_SETS, NoKernelError, describe_compiler, missing_instructions
from zootools.paths import data_folder

PACKAGES = ("torch", "torchvision", "numpy", "pyarrow", "safetensors", "datasets", "huggingface-hub")


@dataclass(frozen=True)
class Findings:
    """The properties of a machine, for an issue, and what is wrong with it."""

    machine: dict[str, Any]
    problems: list[str]
    """Each with its remedy; empty if the machine can build zoos."""


def examine(data: Path | None = None) -> Findings:
    """Return the properties of this machine and of the image files in the data folder, and the problems of both."""
    problems: list[str] = []
    machine: dict[str, Any] = {
        "zootools": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }
    for package in PACKAGES:
        try:
            machine[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            problems.append(f"{package} is not installed; pip install {package}")
    problems += [*_torch_faults(), *_mismatches("torchvision", "torch")]
    machine["cuda"] = _cuda_device() or "none"
    try:
        offered = [name for name in INSTRUCTION_SETS if not missing_instructions(name)]
        machine["instruction_sets"] = ", ".join(offered) or platform.machine()
        machine["compiler"] = describe_compiler()["compiler"]
    except NoKernelError as error:  # not a problem: PyTorch is used instead
        machine["compiler"] = f"none, so training is slower ({error})"
    except SpecError as error:  # of $ZOOTOOLS_ISA
        problems.append(str(error))
    found = find_images(data)
    machine["images_folder"] = str(data_folder(data))
    machine["images"] = {images.name: images.counts for images in found if not images.missing and not images.faults}
    machine["incomplete_images"] = {images.name: images.missing for images in found if images.missing}
    problems += [fault for images in found for fault in images.faults]
    machine["free_bytes"] = shutil.disk_usage(Path.cwd()).free
    if not os.access(Path.cwd(), os.W_OK):
        problems.append("the working folder cannot be written to; give build another one with --out")
    return Findings(machine, problems)


def _torch_faults() -> list[str]:
    """Return why torch's compiled library cannot be loaded on this machine, or nothing."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return []  # which is a problem already
    libraries = Path(found.origin).parent / "lib"
    try:
        for library in (libraries / name for name in ("libtorch_cpu.so", "libtorch_cpu.dylib")):
            if library.exists():
                ctypes.CDLL(str(library))
    except OSError as error:
        return [f"torch cannot be imported ({error}); reinstall it"]
    return []


def _mismatches(package: str, other: str) -> list[str]:
    """Return the requirements of one installed package on another one that are not met."""
    try:
        installed = metadata.version(other)
        required = [Requirement(text) for text in metadata.requires(package) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [
        f"{package} {metadata.version(package)} does not match {other} {installed}: it needs {requirement}; "
        f"install the pair together: pip install -U {other} {package}"
        for requirement in required
        if requirement.name == other and not requirement.specifier.contains(installed, prereleases=True)
    ]


def _cuda_device() -> str | None:
    """Return the name of the first CUDA device that the driver offers, None if it offers none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device):
        return None
    return name.value.decode(errors="replace")
