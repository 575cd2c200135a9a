"""raybench: one YAML file, tens of thousands of deep-learning runs, figures with checked claims.

Reading results needs neither torch nor Ray: `raybench.table(store, suite)` returns pandas,
`raybench.connect(store)` a DuckDB connection with the views `runs`, `metrics` and `arrays`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybench.store import connect, table

__all__ = ["connect", "table"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `raybench --help` should not wait for pandas.
    if name in __all__:
        from raybench import store

        return getattr(store, name)
    raise AttributeError(f"module 'raybench' has no attribute {name!r}")
