"""Prepare a corpus that outgrows one machine: cleaned, without duplicates and packed, as shards to train from.

python recipes/prepare_shards.py --corpus_files … --output_dir FOLDER --tasks N --workers N [--executor local]
accelerate launch recipes/pretrain.py --packed_rows FOLDER …

A corpus that fits one machine is prepared by pretrain.py itself, and faster. Needs the extra electra-hf[shards].
"""

from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import get_token

from electra_hf.errors import InputError
from electra_hf.files import read_json
from electra_hf.publish.cards import CardArguments, fill_rows_card
from electra_hf.publish.hub import PushSettings, check_repo_id, push_results
from electra_hf.recipe import run_recipe
from electra_hf.text.corpus import CorpusArguments, format_report
from electra_hf.text.packed_rows import is_sealed, read_manifest
from electra_hf.text.shard_job import ShardArguments, begin, plan_job, read_faults, remove_faults, remove_leftovers
from electra_hf.training.arguments import TokenizerArguments
from electra_hf.training.checkpoints import check_writable
from electra_hf.training.lock import lock_output_dir


@dataclass
class RowsPushArguments:
    """Where on the Hub the finished shards go."""

    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Push the finished folder as this dataset, user/name."}
    )
    public: bool = field(default=False, metadata={"help": "Let everybody read it. Default: private."})

    def __post_init__(self):
        if self.hub_dataset_id is not None:
            check_repo_id(self.hub_dataset_id, "hub_dataset_id")
            if not get_token():
                raise InputError(
                    "hub_dataset_id: there is no Hub token. Set the variable HF_TOKEN or run `hf auth login`."
                )

    def settings(self) -> PushSettings:
        """The same, as `push_results` takes it."""
        return PushSettings(True, self.hub_dataset_id, hub_private_repo=not self.public)


ARGUMENTS = (ShardArguments, CorpusArguments, TokenizerArguments, CardArguments, RowsPushArguments)


def main(shard_args, corpus_args, tokenizer_args, card_args, push_args):
    if not find_spec("datatrove"):
        raise InputError("datatrove is not installed. Install the extra: pip install 'electra-hf[shards]'")
    if shard_args.executor == "ray" and not find_spec("ray"):
        raise InputError("executor: ray is not installed. Install it: pip install ray")
    from electra_hf.text.shards import run_stages, scripts, submit  # it needs the extra

    # What can be wrong is looked for before anything is written: the folder, the settings, every input.
    check_writable(shard_args.output_dir)
    job = plan_job(
        *(shard_args, corpus_args, tokenizer_args.training_settings(), tokenizer_args.max_length),
        tokenizer=tokenizer_args.tokenizer_name_or_path,
    )
    if shard_args.dry_run:
        print("\n".join(scripts(job, shard_args)))
        return
    # Several machines share the folder: a lock would keep all but the first one out.
    if shard_args.is_alone:
        lock_output_dir(shard_args.output_dir)
    begin(job)
    if shard_args.executor == "slurm" and (fault := read_faults(job.folder)):  # nobody waited there to tell it
        print(f"The start before has failed: {fault}")
    remove_faults(job.folder, shard_args.own_tasks)
    # On Slurm and Ray, tasks of an earlier start may still be at work there.
    if shard_args.is_alone and shard_args.executor == "local":
        remove_leftovers(job)
    # Slurm's jobs go on without us. Once they have finished the folder, the same command writes the card and pushes.
    if shard_args.executor == "slurm" and not is_sealed(job.folder):
        submit(job, shard_args)
        print(
            f"submitted. {job.folder} is finished when it has a manifest.json; then, or after a fault, run this again"
        )
        return
    for stage, number, seconds in run_stages(job, shard_args):
        print(f"{stage}: {number} tasks in {seconds:.1f} s", flush=True)

    manifest = read_manifest(job.folder)
    print(format_report(read_json(f"{job.folder}/corpus.json")))
    if 0 not in shard_args.own_tasks:  # the machine that has the first task does the rest
        return
    fill_rows_card(job.folder, push_args.hub_dataset_id, **asdict(card_args))
    print(f"{manifest['rows']['train']:,} rows to train on: pretrain.py --packed_rows {job.folder}")
    if push_args.hub_dataset_id:
        push_results({Path(job.folder): push_args.hub_dataset_id}, push_args.settings())


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
