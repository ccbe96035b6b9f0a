"""Run by torchrun in test_resume.py: six steps with dropout, every one of them saved."""

import sys

import torch
from tiny import LENGTH, VOCAB_SIZE, packed

from electra_hf import ElectraForPretraining, ElectraPretrainingConfig, ElectraTrainer
from electra_hf.recipe import end_processes
from electra_hf.training.arguments import PretrainingArguments
from electra_hf.training.checkpoints import checkpoint_to_resume


def make_trainer(output_dir, model_seed=0, **settings):
    torch.manual_seed(model_seed)
    network = {"num_hidden_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}
    config = ElectraPretrainingConfig.from_size(
        "small", vocab_size=VOCAB_SIZE, discriminator=network, generator=network
    )
    defaults = {"max_steps": 6, "warmup_steps": 2, "logging_steps": 4, "save_steps": 1, "save_total_limit": None}
    arguments = PretrainingArguments(
        output_dir=str(output_dir),
        **{**defaults, "per_device_train_batch_size": 4, **settings},
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    data = torch.randint(5, VOCAB_SIZE, (96, LENGTH), generator=torch.Generator().manual_seed(0))
    return ElectraTrainer(
        ElectraForPretraining(config), arguments, train_dataset=packed(data[:64]), eval_dataset=packed(data[64:])
    )


def main(*run):
    make_trainer(run[0]).train(checkpoint_to_resume(*run))


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_processes()
