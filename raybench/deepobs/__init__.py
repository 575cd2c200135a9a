"""Results that DeepOBS wrote, as rows of a store: the published runs of the optimizer benchmark.

DeepOBS (Schneider et al. 2019, arXiv:1903.05499) keeps one JSON file a run. The runs behind
Schmidt et al. 2021 (arXiv:2007.01547) lie in folders by budget and schedule on top of that.
"""

from raybench.deepobs.importer import Imported, import_results
from raybench.deepobs.rows import SCALE

__all__ = ["SCALE", "Imported", "import_results"]
