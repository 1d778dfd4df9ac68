"""The machine and the versions, without which no figure means anything."""

import os
import platform
import subprocess
import time
from pathlib import Path


def describe(seats):
    """Facts about this run, a dict of texts for the header and the JSON file."""
    library = next((seat for seat in seats if seat.peer == "fastbp"), None)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{_cpu()}, {os.cpu_count()} CPUs",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        "commit": _commit(),
        "fastbp": library.ask("probe", "configuration") if library else "not installed",
        "contestants": ", ".join(dict.fromkeys(seat.version for seat in seats)),
    }


def header(facts):
    """The facts as lines of text."""
    return "\n".join(f"{name:12}{text}" for name, text in facts.items())


def _cpu():
    """The model's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit():
    """Short hash, with a plus if files have changed since."""
    try:
        run = subprocess.run(["git", "describe", "--always", "--dirty=+", "--exclude=*"], text=True,
                             cwd=Path(__file__).parent, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()
