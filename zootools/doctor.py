"""Check whether this machine can build zoos."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from zootools import __version__
from zootools.errors import SpecError
from zootools.images.shapes import image_faults
from zootools.native.compiler import INSTRUCTION_SETS, NoKernelError, describe_compiler, missing_instructions
from zootools.paths import data_folder

PACKAGES = ("torch", "torchvision", "numpy", "pyarrow", "safetensors", "datasets", "huggingface-hub")


def examine(data: Path | None = None) -> dict[str, dict[str, Any] | list[str]]:
    """Return the properties of the machine (``machine``) and its problems with their remedies (``problems``)."""
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
    try:
        import torch

        machine["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        machine["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be imported ({error}); reinstall it")
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        problems.append(
            f"torchvision does not match torch ({error}); install the pair together: pip install -U torch torchvision"
        )
    try:
        offered = [name for name in INSTRUCTION_SETS if not missing_instructions(name)]
        machine["instruction_sets"] = ", ".join(offered) or platform.machine()
        machine["compiler"] = describe_compiler()["compiler"]
    except NoKernelError as error:  # not a problem: PyTorch is used instead
        machine["compiler"] = f"none, so training is slower ({error})"
    except SpecError as error:  # of $ZOOTOOLS_ISA
        problems.append(str(error))
    folder = data_folder(data)
    machine["image_files"] = str(folder)
    problems += image_faults(data)
    machine["free_bytes_here"] = shutil.disk_usage(Path.cwd()).free
    if not os.access(Path.cwd(), os.W_OK):
        problems.append("the working folder cannot be written to; give build another one with --out")
    return {"machine": machine, "problems": problems}
