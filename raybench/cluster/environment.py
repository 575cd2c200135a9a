"""What must be set before ray is imported: Ray reads it then, once."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
from pathlib import Path
from typing import Any, Final

_QUIET_AND_FAST: Final = {
    "RAY_worker_niceness": "0",  # else workers starve beside any ordinary process
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else a trainer looks at its workers every 2 s
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # workers wait their turn
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours to handle
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # resuming goes by the store, never by Tune
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "1000",
}


def prepare(address: str | None) -> None:
    """Set how Ray behaves, and how it authenticates, unless the user has set it.

    A cluster of one's own gets a token that only this process and its workers know, so that
    other users of the machine cannot join it. For a cluster at an address the user's token is
    used where there is one: Ray 2.60 leaves the mode half set when nothing says it.
    """
    for name, value in _QUIET_AND_FAST.items():
        os.environ.setdefault(name, value)
    if address is None:
        # Ray 2.60 turns 127.0.0.1 into the machine's own address unless it believes that clusters
        # are off; then all its processes listen on loopback only.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return
    if address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        return
    file = Path("~/.ray/auth_token").expanduser()
    known = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or file.exists()
    os.environ["RAY_AUTH_MODE"] = "token" if known else "disabled"


def package() -> dict[str, Any]:
    """Return the runtime environment in which workers of a cluster at an address run our code.

    This package travels to the nodes, so they need not have it, and none computes with another
    version; what it depends on, and plug-ins, they must have. A submitted suite has travelled with
    its job already.
    """
    within_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if within_job or importlib.util.find_spec("aiohttp") is None:  # Ray's agent for it needs that
        return {}
    return {"py_modules": [str(Path(__file__).parents[1])]}
