"""Run by torchrun in test_trainer.py: some steps of a tiny pair, on one process or several."""

import sys
from unittest.mock import patch

import torch
from conftest import LENGTH, VOCAB_SIZE, by_row, packed

from electra_hf import ElectraForPretraining, ElectraPretrainingConfig, ElectraTrainer
from electra_hf.arguments import PretrainingArguments
from electra_hf.corruption import select_positions
from electra_hf.trainer import _OwnRandomStream


def main(result, output_dir, batch_size):
    torch.manual_seed(0)
    network = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "embedding_size": 8,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = ElectraPretrainingConfig.from_size(
        "small", vocab_size=VOCAB_SIZE, discriminator=network, generator=network
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
    )
    data = torch.randint(5, VOCAB_SIZE, (64 + 21, LENGTH))
    trainer = ElectraTrainer(
        ElectraForPretraining(config), arguments, train_dataset=packed(data[:64]), eval_dataset=packed(data[64:])
    )
    with patch("electra_hf.corruption.torch.rand", by_row):
        trainer.train()
        evaluation = trainer.evaluate()
    _OwnRandomStream().on_train_begin(arguments, trainer.state, trainer.control)
    positions, _ = select_positions(data[:4], data[:4] != 0, [0, 2, 3, 4], 0.15)
    draws = trainer.accelerator.gather(positions[None])
    if trainer.is_world_process_zero():
        torch.save(
            {
                "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
                "weights": trainer.model.state_dict(),
                "evaluation": {
                    k: v for k, v in evaluation.items() if k.startswith(("eval_rtd", "eval_gen", "eval_dis"))
                },
                "first_draws": draws.tolist(),
            },
            result,
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
