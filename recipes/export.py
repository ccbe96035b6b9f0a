"""Write discriminator/ and generator/, plain Hugging Face folders, from any checkpoint of a pretraining run.

accelerate launch recipes/export.py --checkpoint output_dir/checkpoint-N --output_dir folder
"""

from dataclasses import dataclass, field
from pathlib import Path

from electra_hf import ElectraForPretraining
from electra_hf.recipe import run_recipe
from electra_hf.text.tokenization import load_tokenizer
from electra_hf.training.checkpoints import check_is_pair


@dataclass
class ExportArguments:
    """What to export, and where to."""

    checkpoint: str = field(metadata={"help": "A checkpoint-N folder of a pretraining run."})
    output_dir: str = field(metadata={"help": "Where discriminator/ and generator/ go."})
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "The tokenizer (default: tokenizer/ beside the checkpoint)."}
    )


ARGUMENTS = (ExportArguments,)


def main(args):
    checkpoint = check_is_pair(args.checkpoint)
    tokenizer = load_tokenizer(args.tokenizer_name_or_path or checkpoint.parent / "tokenizer")
    model = ElectraForPretraining.from_pretrained(checkpoint)
    parts = {"discriminator": model.save_discriminator}
    if model.generator is not None:
        parts["generator"] = model.save_generator
    for part, save in parts.items():
        folder = Path(args.output_dir) / part
        save(folder, tokenizer)
        print(f"{part}: {folder}")


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
