"""Set up once, then run. Needs nothing but Python >= 3.11 and a network to PyPI.

usage: python3 infra/run.py demo            the whole story on this machine
       python3 infra/run.py test [--fast]   lint, types, import contracts and tests
       python3 infra/run.py hasten ...      any hasten command, e.g. hasten doctor
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(os.environ.get("HASTEN_VENV", ROOT / ".venv"))
BIN = VENV / "bin"
CONSTRAINTS = ROOT / "infra" / "constraints.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISK_NEEDED_GB = 4


def main() -> int:
    what, rest = (sys.argv[1] if len(sys.argv) > 1 else "help"), sys.argv[2:]
    if what not in ("demo", "test", "hasten"):
        print(__doc__)
        return 0 if what in ("help", "-h", "--help") else 2
    ensure_environment()
    if what == "test":
        return test(rest)
    arguments = ["demo", *rest] if what == "demo" else rest
    # The program's own exit status and signals go straight to the caller.
    os.execv(BIN / "hasten", [str(BIN / "hasten"), *arguments])


def ensure_environment() -> None:
    """Make ``.venv`` and install into it, unless its stamp says that it is up to date."""
    if sys.version_info < (3, 11):
        sys.exit(f"hasten needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    stamp = VENV / ".stamp"
    inputs = (
        (ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes() + f"{ROOT}{sys.version}".encode()
    )
    wanted = hashlib.sha256(inputs).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < DISK_NEEDED_GB:
        sys.exit(f"{ROOT} has {free_gb:.1f} GB free; the environment needs about {DISK_NEEDED_GB} GB.")
    started = time.monotonic()
    print(f"Setting up {VENV} (a few minutes, once)...", flush=True)
    if not (BIN / "python").exists() and subprocess.run([sys.executable, "-m", "venv", VENV]).returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit("`python3 -m venv` failed. Install it first (Debian/Ubuntu: apt-get install python3-venv).")
    install_torch()
    pip(
        "-e",
        f"{ROOT}[test]",
        failure="The installation failed; the lines above say why. Run the command again.",
    )
    stamp.write_text(wanted)
    print(f"Set up in {time.monotonic() - started:.0f} s.", flush=True)


def install_torch() -> None:
    """Take torch's CPU build on a Linux without an NVIDIA driver: PyPI's brings gigabytes of CUDA.

    Wheels at hand (pip's find-links) come first. Torch alone comes from PyTorch's own index, given as
    *the* index and never as an extra one, so that no other package can be slipped in from there.
    """
    if sys.platform != "linux" or shutil.which("nvidia-smi"):
        return
    pin = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    # Without its dependencies: those come with everything else, from the ordinary index.
    if subprocess.run([*PIP, "install", "--no-deps", "--no-index", pin], capture_output=True).returncode == 0:
        return
    pip(
        "--no-deps",
        "--index-url",
        TORCH_CPU_INDEX,
        pin,
        failure=f"torch's CPU build could not be fetched from {TORCH_CPU_INDEX}.",
    )


PIP = [str(BIN / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]


def pip(*arguments: str, failure: str) -> None:
    if subprocess.run([*PIP, "install", "-c", str(CONSTRAINTS), *arguments]).returncode:
        sys.exit(failure)


def test(arguments: list[str]) -> int:
    """The checks in the order in which they fail fastest; ``--fast`` leaves out servers and long training."""
    fast = "--fast" in arguments
    rest = [argument for argument in arguments if argument != "--fast"]
    marks = ["-m", "not stack and not slow"] if fast else []
    # Two processes, file by file, each with servers of its own; one where somebody chose what to run.
    spread = [] if rest else ["-n", "2", "--dist", "loadfile"]
    checks = [
        [BIN / "ruff", "format", "--check", "--quiet"],
        [BIN / "ruff", "check", "--quiet"],
        [BIN / "lint-imports", "--verbose"] if "-v" in rest else [BIN / "lint-imports"],
        [BIN / "mypy"],
        [BIN / "python", "-m", "pytest", "-q", *spread, *marks, *rest],
    ]
    for check in checks:
        code = subprocess.run(check, cwd=ROOT).returncode
        if code:
            print(f"failed: {' '.join(str(part) for part in check)}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
