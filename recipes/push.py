"""Push a finished model folder to the Hub: private unless asked, one commit, every file verified.

python recipes/push.py --folder outputs/esperanto_small/discriminator --repo_id me/electra-small-eo-discriminator
"""

import sys
from dataclasses import dataclass, field

from electra_hf.publish.hub import PushError, push_folder
from electra_hf.recipe import run_recipe


@dataclass
class PushArguments:
    folder: str = field(metadata={"help": "A model folder: discriminator/, generator/, or a fine-tuned model."})
    repo_id: str = field(metadata={"help": "The repository, user/name. It is made if it is missing."})
    # Private by default: what has been public once cannot be taken back.
    public: bool = field(default=False, metadata={"help": "Let everybody read it. Default: private."})
    revision: str | None = field(default=None, metadata={"help": "The branch; made if it is missing. Default: main."})
    tag: str | None = field(default=None, metadata={"help": "A name for this commit, such as v1."})


def main(arguments):
    try:
        url = push_folder(arguments.folder, arguments.repo_id, not arguments.public, arguments.revision, arguments.tag)
    except PushError as error:
        # An exit code of its own: the folder is complete, and the message has the command to push it again.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    print(f"pushed and verified: {url}")


if __name__ == "__main__":
    run_recipe(main, PushArguments)
