"""The command line in a process of its own that has PyTorch and its like imported already.

A command spends most of its time on imports: a server that has done them is forked for each call.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_LIBRARIES = [
    "duckdb", "matplotlib.pyplot", "pandas", "pyarrow.parquet", "pydantic", "scipy.stats",
    "sklearn.datasets", "torch",
]  # fmt: skip
"""What is imported once. Neither raybench, which is what is tested, nor ray, which reads its
environment."""
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(_LIBRARIES)


def call(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `raybench` with some words, as `subprocess.run` would."""
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder) / "stdout", Path(folder) / "stderr"]
        process = _SERVER.Process(target=_carry_out, args=(words, cwd, dict(environment), told))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(words), timeout)
        code = process.exitcode
        process.close()
        return subprocess.CompletedProcess(words, code, *(path.read_text("utf-8") for path in told))


def _carry_out(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str], told: Sequence[Path]
) -> None:
    for descriptor, path in enumerate(told, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:] = [entry for entry in sys.path if entry]  # not where the tests are run from
    sys.argv = ["raybench", *words]
    from raybench.cli import main

    main()
