"""Push a finished folder, a model or packed rows, to the Hub, and verify what arrived.

Only what a reader of the model needs goes up, in one commit; then the checksum of every remote file is compared with
the local one. The Trainer's own push is never used: it uploads `training_args.bin`, overwrites the card, reads files
while they are rewritten, and does not look at failures.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

from electra_hf.errors import InputError
from electra_hf.files import read_json
from electra_hf.publish.cards import address_card, is_generated_card

# A checkpoint holds more than its model: optimizer state, and `training_args.bin`, a pickle that can hold a token.
PUSHED_FILES = (
    *("config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *("README.md", "curves.png", "confusion.png", "scatter.png", "metrics.json", "corpus.json", "recipe.yaml"),
)
MANIFEST = "manifest.json"  # of packed rows: what it names is pushed, and nothing else
TEXT_SUFFIXES = (".json", ".yaml", ".md", ".txt")
SECRETS = {
    "a Hugging Face token": r"\b(hf|api_org)_[A-Za-z0-9]{30,}",
    "an AWS access key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60})",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{20}",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a password in an address": r"\w://[^\s/:@\"']+:[^\s/@\"']+@",
    "a signed address": r"(?i)\w://[^\s\"']*[?&](sig|signature|token|x-amz-[a-z-]+|x-goog-[a-z-]+|[a-z_]*key)=",
}


class PushError(Exception):
    """The push failed; the model is unharmed on disk. The message ends with the command to push again."""


@dataclass
class PushSettings:
    """Where a run pushes to: settings of `TrainingArguments` as the user gave them, under the same names."""

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = True
    hub_revision: str | None = None

    @property
    def repo_id(self) -> str | None:
        """The repository of a run that leaves one model; None where nothing is pushed."""
        return self.hub_model_id if self.push_to_hub else None

    @property
    def discriminator_repo_id(self) -> str | None:
        """The repository of the discriminator of a pair; None where nothing is pushed."""
        return self._one_of_two("-discriminator")

    @property
    def generator_repo_id(self) -> str | None:
        """The repository of the generator of a pair; None where nothing is pushed."""
        return self._one_of_two("-generator")

    def _one_of_two(self, suffix):
        # So `me/eo` and `me/eo-discriminator` mean the same pair of repositories.
        return self.hub_model_id.removesuffix("-discriminator") + suffix if self.push_to_hub else None


def take_push_settings(training_args: TrainingArguments) -> PushSettings:
    """Take `push_to_hub` and what belongs to it out of `TrainingArguments`, into `PushSettings`.

    Afterwards `training_args.push_to_hub` is False: the Trainer itself must never push. Raises `InputError` before any
    training for what would let the push fail after it.
    """
    if training_args.hub_token:
        raise InputError(
            "hub_token: a token among the settings ends in files that others read. "
            "Leave it out, and set the variable HF_TOKEN or run `hf auth login`."
        )
    # Transformers takes None for public; here a repository is public only where it was asked to be.
    private = training_args.hub_private_repo is not False
    name, revision = training_args.hub_model_id, training_args.hub_revision
    settings = PushSettings(training_args.push_to_hub, name, private, revision)
    training_args.push_to_hub = False
    if settings.push_to_hub:
        if not name:
            raise InputError("push_to_hub: hub_model_id is missing. Name the repository, such as me/electra-small-eo.")
        check_repo_id(name, "hub_model_id")
        if not get_token():
            raise InputError("push_to_hub: there is no Hub token. Set the variable HF_TOKEN or run `hf auth login`.")
    return settings


def push_results(folders: dict[Path, str | None], settings: PushSettings) -> None:
    """Push each `{folder: repo_id}` at the end of a recipe, where the user asked for it.

    A failure ends the process with code 3, the others pushed. Call it on the main process, when everything is on disk.
    """
    if not settings.push_to_hub:
        return
    failed = False
    for folder, repo_id in folders.items():
        try:
            url = push_folder(folder, repo_id, private=settings.hub_private_repo, revision=settings.hub_revision)
            print(f"pushed {folder}: {url}")
        except (PushError, InputError) as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if failed:
        sys.exit(3)


def push_folder(
    folder: str | Path, repo_id: str, private: bool = True, revision: str | None = None, tag: str | None = None
) -> str:
    """Push a model folder in one commit, verify every file, and return the commit's URL.

    A folder of packed rows becomes a dataset. The repository is made if it is missing (private unless asked
    otherwise), and so is the branch `revision`; `tag` names the commit. A card that someone wrote by hand on the Hub
    is kept. Raises `InputError` for a folder that must not be pushed, `PushError` for whatever goes wrong on the way.
    """
    folder = Path(folder)
    check_repo_id(repo_id, "repo_id")
    # Before the Hub is asked anything: a folder that must not leave the machine does not get that far.
    files = select_files(folder)
    # The card's example and links name the repository, which is known only now.
    address_card(folder, repo_id)
    again = _command(folder, repo_id, private, revision, tag)
    repo_type = "dataset" if _is_packed_rows(folder) else "model"
    return _push_or_tell(again, folder, files, repo_id, private, revision or "main", tag, repo_type)


def push_space(folder: str | Path, repo_id: str, again: str, private: bool = True) -> str:
    """Push the folder of a Space, all of its files in one commit, verify every one, and return the commit's URL.

    The Space is made if it is missing (private unless asked otherwise). `again` is the command to push again, for the
    message of `PushError`. Raises `InputError` for a folder that holds a secret.
    """
    folder = Path(folder)
    check_repo_id(repo_id, "space")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in files:
        _refuse_secrets(folder / name)
    return _push_or_tell(again, folder, files, repo_id, private, "main", None, "space")


def _push_or_tell(again, folder, files, repo_id, *arguments):
    try:
        return _push(folder, files, repo_id, *arguments)
    # The HTTP client, hf_xet and the Hub's answers raise a dozen types. Whichever it is, all is on disk.
    except Exception as error:
        raise PushError(
            f"{repo_id}: the push failed: {_reason(error)}\n"
            f"Everything is complete in {folder}. Push it again with:\n  {again}"
        ) from error


def _reason(error):
    """The error and what caused it, in one line: the client tells some refusals only by their cause."""
    parts = []
    while error is not None:
        # A cause may say nothing at all; then its type is the best there is.
        parts.append(" ".join(str(error).split()) or type(error).__name__)
        error = error.__cause__
    return " Cause: ".join(dict.fromkeys(parts))


def check_repo_id(repo_id: str, key: str) -> None:
    """Refuse what is no `user/name`, with the setting's name in the message."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{key}: {error}") from None
    # The library also takes a bare name and puts the account of the token before it: whose that is may surprise.
    if repo_id.count("/") != 1:
        raise InputError(f"{key}: expected user/name, such as me/electra-small-eo, got {repo_id!r}.")


def select_files(folder: str | Path) -> list[str]:
    """Names of the files that may be pushed. Raises `InputError` if it is no model folder or holds a secret."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    if _is_packed_rows(folder):
        return _select_rows(folder)
    # Sorted, so that the same folder is always the same commit.
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    files = [name for name in names if any(fnmatch(name, pattern) for pattern in PUSHED_FILES)]
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise InputError(
            f"{folder} is not a model folder: config.json and model.safetensors are expected in it. "
            "A run keeps its models in discriminator/ and generator/; export.py makes them from a checkpoint."
        )
    for name in files:
        if name.endswith(TEXT_SUFFIXES):
            _refuse_secrets(folder / name)
    return files


def _is_packed_rows(folder):
    return (folder / MANIFEST).is_file() and not (folder / "config.json").exists()


def _select_rows(folder):
    manifest = read_json(folder / MANIFEST)
    files = [MANIFEST, *manifest.get("shards", ()), *manifest.get("files", ())]
    files += ["README.md"] if (folder / "README.md").is_file() else []
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise InputError(f"{folder}: {missing[0]}, which {MANIFEST} names, is missing. Make the folder again.")
    for name in files:
        if name.endswith(TEXT_SUFFIXES):
            _refuse_secrets(folder / name)
    return files


def _refuse_secrets(path):
    patterns = dict(SECRETS)
    if token := get_token():
        # Tokens of the past and of companies look different; this one is known exactly.
        patterns["your Hub token"] = re.escape(token)
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        for what, pattern in patterns.items():
            if re.search(pattern, line):
                # The line itself stays out of the message: it would carry the secret into the log.
                raise InputError(f"{path}, line {number}: this looks like {what}. Remove it, then push.")


def _push(folder, files, repo_id, private, revision, tag, repo_type):
    if not get_token():
        raise PushError("there is no Hub token. Set the variable HF_TOKEN or run `hf auth login`.")
    # The Hub's statistics then show what made a model.
    api = HfApi(library_name="electra_hf")
    is_new = repo_type == "space" and not api.repo_exists(repo_id, repo_type=repo_type)
    sdk = "gradio" if repo_type == "space" else None
    api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
    _check_visibility(api, repo_id, private, repo_type)
    if revision != "main":
        api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    # A Space that was just made has a card that the Hub wrote.
    if not is_new and _keeps_remote_card(api, folder, repo_id, revision, repo_type):
        print(f"{repo_id}: the card there was written by hand and is kept.")
        files = [name for name in files if name != "README.md"]

    # One commit: weights without their config, or a card of other weights, are never there for anybody to load.
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files]
    message = f"Push {folder.name}"
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision, repo_type=repo_type)
    # Of this commit, not of the branch, which somebody else may have moved on meanwhile.
    _verify(api, folder, files, repo_id, commit.oid, repo_type)
    if tag:
        api.create_tag(repo_id, repo_type=repo_type, tag=tag, revision=commit.oid, exist_ok=True)
        # `exist_ok` leaves an old tag where it is, and says nothing.
        if api.repo_info(repo_id, repo_type=repo_type, revision=tag).sha != commit.oid:
            raise PushError(f"the files are there, but the tag {tag} names another commit already. Choose a new tag.")
    return commit.commit_url


def _check_visibility(api, repo_id, private, repo_type):
    # A push into an existing repository leaves its visibility as it is, which must not make a private model public.
    is_private = api.repo_info(repo_id, repo_type=repo_type).private
    if is_private != private:
        there, here = ("private", "public") if is_private else ("public", "private")
        way_out = "leave out --public" if is_private else "add --public"
        raise PushError(f"the repository is {there}, and the push asked for {here}. Change it there, or {way_out}.")


def _keeps_remote_card(api, folder, repo_id, revision, repo_type):
    """Whether a hand-written card on the Hub would be overwritten by a generated one."""
    # Whoever wrote the local card by hand wants it up there.
    if not is_generated_card(folder / "README.md"):
        return False
    try:
        card = api.hf_hub_download(repo_id, "README.md", revision=revision, repo_type=repo_type)
        return not is_generated_card(Path(card))
    except EntryNotFoundError:
        return False


def _verify(api, folder, files, repo_id, commit, repo_type):
    """Compare the checksums of commit and folder (SHA-256 for large files, git's for small ones)."""
    check = api.verify_repo_checksums(repo_id, repo_type=repo_type, revision=commit, local_dir=folder)
    # What lies in the repository besides is not ours to judge.
    wrong = {row["path"] for row in check.mismatches} | set(check.extra_paths)
    if wrong := sorted(wrong & set(files)):
        raise PushError(f"{', '.join(wrong)}: what arrived is not what is on disk (changed during the upload?).")


def _command(folder, repo_id, private, revision, tag):
    command = ["python", "recipes/push.py", "--folder", str(folder), "--repo_id", repo_id]
    command += [] if private else ["--public"]
    command += ["--revision", revision] if revision else []
    command += ["--tag", tag] if tag else []
    return shlex.join(command)
