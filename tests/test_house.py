"""The house's rules that no type checker sees."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hasten.trainers

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
PURE = next(contract for contract in CONTRACTS if contract["name"].startswith("pure modules"))


def python(script: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("room", ["platform", "trainers", "sweeps"])
def test_a_room_is_no_package(room: str) -> None:
    """An __init__.py in one of these would shadow the standard library's platform, or split the namespace."""
    for folder in (ROOT / room, ROOT / room / "hasten"):
        assert folder.is_dir()
        assert not (folder / "__init__.py").exists()
    assert (ROOT / room / "hasten" / room / "__init__.py").is_file()
    assert (ROOT / room / "hasten" / room / "py.typed").is_file()


def test_tests_are_no_packages() -> None:
    assert [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_platform_is_the_standard_librarys() -> None:
    script = "import platform, sys; print(platform.__file__); assert platform.system()"
    for environment in ({}, {"PYTHONPATH": str(ROOT)}):
        found = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr
        assert str(ROOT / "platform") not in found.stdout


def test_all_rooms_are_one_namespace() -> None:
    script = "import hasten, hasten.platform, hasten.sweeps, hasten.trainers; print(hasten.__file__)"
    found = python(script)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "None"


BLOCKED = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow", "boto3", "botocore"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
try:
    import ray
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the block does not work")
for name in sys.argv[1:]:
    importlib.import_module(name)
    if {"hasten.sweeps", "hasten.platform"} & set(sys.modules):
        raise SystemExit(f"{name} imports a room above")
"""


def modules_of_trainers() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(hasten.trainers.__path__, "hasten.trainers.")]


def test_trainers_needs_no_vendor_and_no_room_above() -> None:
    """All of it but Ray's door: profiling on a bare GPU box, and an honest loop."""
    names = [name for name in modules_of_trainers() if name != "hasten.trainers.ray_train"]
    assert "hasten.trainers.session" in names
    done = python(BLOCKED, *names)
    assert done.returncode == 0, done.stderr


TRAINS = """
from hasten.trainers import session, specs
from hasten.trainers.checkpoints import RunStore
from hasten.trainers.datasets import sources
from hasten.trainers.tracker import NullTracker
from hasten.trainers.worker import Worker

changes = {"budget.images": 2560, "eval.samples.images": 64, "eval.grid.images": 64, "eval.loss.images": 256}
job = sources.bind(specs.load("mixture-2d", changes), STORAGE)
for _ in session.run(job, worker=Worker(), track=NullTracker()):
    pass
losses = [loss for _, loss in RunStore(job.uri).result().series("eval/excess_loss")]
if not losses[-1] < 0.5 * losses[0]:
    raise SystemExit(f"it did not learn: {losses}")
"""


@pytest.mark.slow
def test_trainers_trains_without_any_vendor(tmp_path: Path) -> None:
    done = python(f"{BLOCKED}\nSTORAGE = {str(tmp_path)!r}\n{TRAINS}")
    assert done.returncode == 0, done.stderr


HEAVY = """
import importlib, sys

for name in sys.argv[2:]:
    importlib.import_module(name)
    found = set(sys.argv[1].split(",")) & set(sys.modules)
    if found:
        raise SystemExit(f"{name} imports {', '.join(sorted(found))}")
"""


def exists(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def test_pure_modules_exist() -> None:
    missing = [name for name in PURE["source_modules"] if not exists(name)]
    assert missing == []


def test_pure_modules_start_in_a_blink() -> None:
    names = [name for name in PURE["source_modules"] if exists(name)]
    done = python(HEAVY, ",".join(PURE["forbidden_modules"]), *names)
    assert done.returncode == 0, done.stderr
