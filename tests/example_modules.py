"""Import the examples, which are scripts: their modules have plain names such as `train`, and several share them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def import_example(folders: tuple[str, ...], *names: str) -> SimpleNamespace:
    """The modules called `names` of an example, which leave no trace in `sys.modules`.

    folders: of `examples`, in the order in which they are searched.
    """
    path, places = list(sys.path), [EXAMPLES / folder for folder in folders]
    ours = {file.stem for place in places for file in place.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in ours & set(sys.modules)}
    sys.path[:0] = map(str, places)
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path[:] = path
        for name in ours & set(sys.modules):
            del sys.modules[name]
        sys.modules.update(others)


def run_example(script: str, *arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script of `examples` as a user does, with torchrun if there are to be several processes."""
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(ROOT)) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(EXAMPLES / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
