"""Run by torchrun in test_ranks.py: the recipe, with draws by the row alone, which no split of a batch changes."""

import runpy
import sys
from pathlib import Path
from unittest.mock import patch

from tiny import by_row

import electra_hf.model.corruption  # noqa: F401

if __name__ == "__main__":
    with patch("electra_hf.model.corruption.torch.rand", by_row):
        runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "pretrain.py"), run_name="__main__")
    sys.exit(0)
