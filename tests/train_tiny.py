"""Run by torchrun in test_trainer.py: some steps of every tiny pair, on one process or several."""

import sys
from unittest.mock import patch

import torch
from tiny import LENGTH, VOCAB_SIZE, by_row, packed

from electra_hf import ElectraForPretraining, ElectraPretrainingConfig, ElectraTrainer
from electra_hf.model.corruption import select_positions
from electra_hf.model.objectives import OBJECTIVES
from electra_hf.model.sharing import EMBEDDING_SHARINGS
from electra_hf.recipe import end_processes
from electra_hf.training.arguments import PretrainingArguments
from electra_hf.training.callbacks import OwnRandomStream


def train(output_dir, batch_size, objective, embedding_sharing):
    torch.manual_seed(0)
    network = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "embedding_size": 8,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = ElectraPretrainingConfig.from_size(
        "small",
        vocab_size=VOCAB_SIZE,
        discriminator=network,
        generator=network,
        objective=objective,
        embedding_sharing=embedding_sharing,
    )
    arguments = PretrainingArguments(
        output_dir=output_dir,
        max_steps=4,
        warmup_steps=2,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=8,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    data = torch.randint(5, VOCAB_SIZE, (64 + 21, LENGTH))
    trainer = ElectraTrainer(
        ElectraForPretraining(config), arguments, train_dataset=packed(data[:64]), eval_dataset=packed(data[64:])
    )
    with patch("electra_hf.model.corruption.torch.rand", by_row):
        trainer.train()
        evaluation = trainer.evaluate()
    names = ("eval_rtd", "eval_gen", "eval_dis", "eval_tok")
    return trainer, {
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "weights": trainer.model.state_dict(),
        "evaluation": {name: value for name, value in evaluation.items() if name.startswith(names)},
    }


def draw(trainer):
    """The first positions that each process selects in the same rows."""
    OwnRandomStream().on_train_begin(trainer.args, trainer.state, trainer.control)
    ids = torch.full((4, LENGTH), 7)
    positions, _ = select_positions(ids, ids != 0, [0, 2, 3, 4], 0.15)
    return trainer.accelerator.gather(positions[None]).tolist()


def main(result, output_dir, batch_size):
    runs = {}
    for objective in OBJECTIVES:
        for sharing in EMBEDDING_SHARINGS:
            trainer, runs[f"{objective}, {sharing}"] = train(output_dir, batch_size, objective, sharing)
    draws = draw(trainer)
    if trainer.is_world_process_zero():
        torch.save({"runs": runs, "first_draws": draws}, result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    end_processes()
