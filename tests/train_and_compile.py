"""Run by test_kill.py: an endless run in which a part of the model is compiled; the whole would take minutes."""

import sys

from train_and_resume import make_trainer

from electra_hf.training.stopping import CleanStop

if __name__ == "__main__":
    trainer = make_trainer(sys.argv[1], max_steps=100_000, save_strategy="no")
    trainer.model.discriminator.discriminator_predictions.compile()
    stop = CleanStop()
    trainer.add_callback(stop)
    trainer.train()
    stop.exit_if_stopped()
