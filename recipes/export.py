"""Write discriminator/ and generator/, plain Hugging Face folders, from any checkpoint of a pretraining run.

accelerate launch recipes/export.py --checkpoint output_dir/checkpoint-N --output_dir folder
"""

from dataclasses import dataclass, field
from pathlib import Path

from electra_hf import ElectraForPretraining
from electra_hf.recipe import run_recipe
from electra_hf.text.run_tokenizer import load_with_checkpoint
from electra_hf.training.checkpoints import check_is_pair
from electra_hf.training.identity import check_tokenizer_belongs


@dataclass
class ExportArguments:
    """What to export, and where to."""

    checkpoint: str = field(metadata={"help": "A checkpoint-N folder of a pretraining run."})
    output_dir: str = field(metadata={"help": "Where discriminator/ and generator/ go."})


ARGUMENTS = (ExportArguments,)


def main(args):
    checkpoint = check_is_pair(args.checkpoint)
    # The tokenizer of the checkpoint itself, since the folder of the run may hold another one by now.
    tokenizer = load_with_checkpoint(checkpoint)
    model = ElectraForPretraining.from_pretrained(checkpoint)
    check_tokenizer_belongs(checkpoint, tokenizer, model.config.discriminator_config.vocab_size)
    parts = {"discriminator": model.save_discriminator}
    # The objective mlm trains without a generator.
    if model.generator is not None:
        parts["generator"] = model.save_generator
    for part, save in parts.items():
        folder = Path(args.output_dir) / part
        save(folder, tokenizer)
        print(f"{part}: {folder}")


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
