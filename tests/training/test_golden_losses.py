"""The first 100 losses of a tiny run: whoever rearranges the computation must find the same numbers."""

import json
from pathlib import Path

import pytest
import torch
from train_and_resume import make_trainer

FILE = Path(__file__).parent / "golden_losses.json"


@pytest.mark.slow
def test_the_first_100_losses_are_those_of_the_file(tmp_path):
    # Only a change that is meant to change the numbers may write the file anew: delete it and run this test once.
    trainer = make_trainer(tmp_path, max_steps=100, logging_steps=1, save_strategy="no")
    with torch.random.fork_rng():
        trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 100
    if not FILE.exists():
        FILE.write_text(json.dumps(losses, indent=0) + "\n")
        pytest.fail(f"{FILE.name} did not exist and is written now")
    assert losses == pytest.approx(json.loads(FILE.read_text()), rel=1e-4)
