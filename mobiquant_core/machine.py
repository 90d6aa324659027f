"""A few words about the device and versions that a run was made with, for its record."""

import datetime
import platform

import torch


def describe_machine(device: torch.device) -> dict[str, str]:
    """Device name, versions and date; `path` says whether the plain torch definition or kernels ran."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "path": "kernels" if on_gpu else "reference",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
