"""raybench: one YAML file, tens of thousands of deep-learning runs, figures with checked claims.

Reading results needs neither torch nor Ray: `raybench.table(store, suite)` returns pandas,
`raybench.connect(store)` a DuckDB connection with the views `runs`, `metrics` and `arrays`.
"""

from raybench.store import connect, table

__all__ = ["connect", "table"]
