"""Pushing to a real (small) Hub on loopback, in both transfer modes, and all that goes wrong on the way."""

import hashlib
import shutil
import subprocess
import zlib

import pytest
import torch
import yaml
from hub_client import OTHER_TOKEN, TOKEN, Client, ClientError, files_that_hold
from hub_server import Fault, Hub, answer, hang_up, serve_then_hang_up
from tiny import make_packed_rows
from transformers import ElectraConfig, ElectraForPreTraining, TrainingArguments

from electra_hf.errors import InputError
from electra_hf.files import read_json
from electra_hf.publish.cards import MARKER, fill_rows_card
from electra_hf.publish.hub import PushSettings, check_repo_id, push_results, select_files, take_push_settings
from electra_hf.recipe import save_recipe
from electra_hf.text.tokenization import save_tokenizer, train_tokenizer

SENTENCES = ["La hundo kuras rapide en la urbo .", "Mi vidas vin ĉiutage kaj ĝojas ."]


def make_model_folder(folder, seed=0):
    """A discriminator of some thousand parameters with its tokenizer, and what must never leave the machine."""
    tokenizer = train_tokenizer(SENTENCES * 20, vocab_size=128)
    size = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = ElectraConfig(vocab_size=len(tokenizer), intermediate_size=16, **size)
    ElectraForPreTraining(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    (folder / "training_args.bin").write_text(f"a pickle that holds {TOKEN}")
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"old")
    return folder


@pytest.fixture
def folder(tmp_path, request):
    # Weights of its own for each test: what the Hub holds already is not uploaded again.
    return make_model_folder(tmp_path / "discriminator", seed=zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="module", params=["lfs", "xet"])
def service(request, tmp_path_factory):
    """A Hub and a client of it, for one transfer mode."""
    place = tmp_path_factory.mktemp(request.param)
    hub = Hub(place / "hub", {TOKEN: "me", OTHER_TOKEN: "stranger"}, xet=request.param == "xet").start()
    client = Client(hub, place / "home", place / "client.log")
    yield hub, client, place
    client.close()
    hub.stop()


@pytest.fixture
def hub(service):
    service[0].faults.clear()
    return service[0]


@pytest.fixture
def client(service):
    yield service[1]
    service[1].as_user(TOKEN)


@pytest.fixture
def repo_id(request):
    """A repository of its own for each test."""
    return "me/" + hashlib.md5(request.node.name.encode()).hexdigest()[:12]


def checksums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def replace_weights(folder, seed):
    torch.manual_seed(seed)
    ElectraForPreTraining(ElectraConfig.from_pretrained(folder)).save_pretrained(folder)


def test_a_push_is_private_and_holds_the_model_and_nothing_else(hub, client, folder, repo_id):
    url = client.push(folder, repo_id)
    remote = client.call("hub_client", "remote_files", repo_id)
    assert set(remote) == {
        ".gitattributes",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert remote["model.safetensors"] == checksums(folder)["model.safetensors"]
    repository = hub.repositories["models", repo_id]
    assert url == f"{hub.url}/{repo_id}/commit/{repository.resolve('main')}"
    assert repository.private
    for token in (None, OTHER_TOKEN):
        client.as_user(token)
        with pytest.raises(ClientError, match="RepositoryNotFoundError"):
            client.call("hub_client", "remote_files", repo_id)


@pytest.fixture(scope="module")
def packed_rows(tmp_path_factory):
    """A folder of packed rows, and what must never leave the machine."""
    place = tmp_path_factory.mktemp("rows")
    make_packed_rows(place / "rows", [f"{SENTENCES[i % 2]} {i}" for i in range(600)])
    (place / "rows" / "notes.txt").write_text(f"a file of the user that holds {TOKEN}")
    return place / "rows"


def test_packed_rows_become_a_private_dataset_that_can_be_trained_from_by_its_name(hub, client, packed_rows, repo_id):
    fill_rows_card(packed_rows, language=["eo"], license="cc-by-4.0", corpus_license="the examples of a test")
    url = client.push(packed_rows, repo_id, tag="v1")
    manifest = read_json(packed_rows / "manifest.json")
    repository = hub.repositories["datasets", repo_id]
    assert repository.private and url.endswith(f"{repo_id}/commit/{repository.resolve('main')}")
    entries = {entry.path for entry in repository.entries(repository.resolve("v1"))}
    assert entries == {".gitattributes", "README.md", "manifest.json", *manifest["shards"], *manifest["files"]}
    expected = [manifest["rows"]["train"], manifest["rows"]["test"]]
    assert client.call("hub_client", "fetch_rows", repo_id) == expected
    assert client.call("hub_client", "fetch_rows", f"{repo_id}@v1") == expected
    assert client.call("hub_client", "fetch_rows", f"hf://datasets/{repo_id}") == expected
    with pytest.raises(ClientError, match="InputError.*no folder me/nothing here, and no such dataset"):
        client.call("hub_client", "fetch_rows", "me/nothing")
    card = (packed_rows / "README.md").read_text()
    assert f"--packed_rows {repo_id}\n" in card and "cc-by-4.0" in card and "the examples of a test" in card


def test_packed_rows_with_a_shard_missing_are_not_pushed(client, packed_rows, tmp_path, repo_id):
    shutil.copytree(packed_rows, tmp_path / "copy")
    (tmp_path / "copy" / "train" / "00001.arrow").unlink()
    with pytest.raises(ClientError, match="InputError.*train/00001.arrow, which manifest.json names, is missing"):
        client.push(tmp_path / "copy", repo_id)


def test_pushing_the_same_again_makes_no_commit(client, folder, repo_id):
    assert client.push(folder, repo_id) == client.push(folder, repo_id)


def test_a_public_push_can_be_read_by_everybody(client, folder, repo_id):
    client.push(folder, repo_id, private=False)
    client.as_user(None)
    assert "config.json" in client.call("hub_client", "remote_files", repo_id)


def test_a_private_push_into_a_public_repository_is_refused(client, folder, repo_id):
    client.push(folder, repo_id, private=False)
    replace_weights(folder, seed=1)
    with pytest.raises(ClientError, match="PushError.*the repository is public, and the push asked for private"):
        client.push(folder, repo_id)
    remote = client.call("hub_client", "remote_files", repo_id)
    assert remote["model.safetensors"] != checksums(folder)["model.safetensors"]


def test_branch_and_tag_are_made_and_each_keeps_its_own_weights(client, folder, repo_id):
    client.push(folder, repo_id, tag="v1")
    first = checksums(folder)["model.safetensors"]
    replace_weights(folder, seed=1)
    client.push(folder, repo_id, revision="second/try", tag="v2")
    second = checksums(folder)["model.safetensors"]
    names = {"main": first, "v1": first, "second/try": second, "v2": second}
    for revision, expected in names.items():
        assert client.call("hub_client", "remote_files", repo_id, revision)["model.safetensors"] == expected


def test_a_tag_never_moves(client, folder, repo_id):
    client.push(folder, repo_id, tag="v1")
    client.push(folder, repo_id, tag="v1")
    replace_weights(folder, seed=1)
    with pytest.raises(ClientError, match="PushError.*the tag v1 names another commit"):
        client.push(folder, repo_id, tag="v1")


def test_a_card_written_by_hand_on_the_hub_is_kept(client, folder, repo_id):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMy own words\n")
    client.push(folder, repo_id)
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{MARKER.format('USER/MODEL')}\nGenerated\n")
    replace_weights(folder, seed=1)
    client.push(folder, repo_id)
    assert "written by hand" in client.output
    assert client.call("hub_client", "read_remote", repo_id, "README.md").endswith("My own words\n")


def test_a_generated_card_is_replaced_and_names_its_repository(client, folder, repo_id):
    card = f"---\nlicense: mit\n---\n{MARKER.format('USER/MODEL')}\n"
    (folder / "README.md").write_text(card + 'from_pretrained("USER/MODEL")')
    client.push(folder, repo_id)
    (folder / "README.md").write_text(card + 'New: from_pretrained("USER/MODEL")')
    client.push(folder, repo_id)
    assert f'New: from_pretrained("{repo_id}")' in client.call("hub_client", "read_remote", repo_id, "README.md")


STEPS = {
    "create": ("POST", "/api/repos/create"),
    "negotiate": ("POST", "/preupload/"),
    "upload": None,  # differs between the modes
    "commit": ("POST", "/commit/"),
    "verify": ("GET", "/tree/"),
}


def fault_at(step, hub, action, times=1):
    upload = ("GET", "/xet-write-token/") if hub.xet_url else ("PUT", "/_lfs/")
    return Fault(*(STEPS[step] or upload), action, times)


def fail_then_push_again(hub, client, folder, repo_id, fault):
    """Push into the fault; nothing on disk changes, and the push that the message names succeeds."""
    before = checksums(folder)
    hub.faults.append(fault)
    with pytest.raises(ClientError) as failure:
        client.push(folder, repo_id, tag="v1")
    assert failure.value.kind == "PushError"
    assert f"python recipes/push.py --folder {folder} --repo_id {repo_id} --tag v1" in failure.value.message
    assert TOKEN not in failure.value.message
    assert checksums(folder) == before
    hub.faults.clear()
    if hub.server is None:
        hub.start()
    client.push(folder, repo_id, tag="v1")
    remote = client.call("hub_client", "remote_files", repo_id, "v1")
    assert remote["model.safetensors"] == before["model.safetensors"]
    return failure.value.message


@pytest.mark.parametrize(
    ("step", "status"),
    [
        *(("create", 401), ("create", 403), ("negotiate", 429), ("upload", 403), ("upload", 500)),
        *(("commit", 403), ("commit", 409), ("commit", 412), ("commit", 429), ("commit", 503), ("verify", 502)),
    ],
)
def test_a_refusal_at_any_step_costs_nothing(hub, client, folder, repo_id, step, status):
    message = fail_then_push_again(hub, client, folder, repo_id, fault_at(step, hub, answer(status), times=9))
    assert str(status) in message


@pytest.mark.parametrize("step", STEPS)
def test_a_lost_answer_at_any_step_costs_nothing(hub, client, folder, repo_id, step):
    fail_then_push_again(hub, client, folder, repo_id, fault_at(step, hub, serve_then_hang_up, times=9))


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_goes_away_at_any_step_costs_nothing(hub, client, folder, repo_id, step):
    def go_away(handler):
        hub.stop()
        hang_up(handler)

    fail_then_push_again(hub, client, folder, repo_id, fault_at(step, hub, go_away))


def test_a_server_that_is_not_there_costs_nothing(hub, client, folder, repo_id):
    hub.stop()
    fail_then_push_again(hub, client, folder, repo_id, fault_at("create", hub, hang_up))


def test_a_server_that_stumbles_once_during_the_upload_is_tried_again(hub, client, folder, repo_id):
    hub.faults.append(fault_at("upload", hub, answer(503)))
    client.push(folder, repo_id)
    assert 503 in [request["status"] for request in hub.requests]


def test_weights_rewritten_during_the_upload_are_noticed(hub, client, folder, repo_id):
    weights = folder / "model.safetensors"
    original = weights.read_bytes()

    def rewrite_then_serve(handler):
        weights.write_bytes(bytes(byte ^ 1 for byte in original))
        handler.serve()

    def rewrite_again_then_serve(handler):
        weights.write_bytes(bytes(byte ^ 3 for byte in original))
        handler.serve()

    hub.faults += [fault_at("upload", hub, rewrite_then_serve), fault_at("commit", hub, rewrite_again_then_serve)]
    with pytest.raises(ClientError, match="PushError"):
        client.push(folder, repo_id)
    hub.faults.clear()
    weights.write_bytes(original)
    client.push(folder, repo_id)
    remote = client.call("hub_client", "remote_files", repo_id)
    assert remote["model.safetensors"] == hashlib.sha256(original).hexdigest()


def test_a_server_that_stores_something_else_is_noticed(hub, client, folder, repo_id):
    def store_another_config(handler):
        handler.serve()
        hub.repositories["models", repo_id].commit("main", "not what was sent", {"config.json": b"{}"})
        handler.hub.last_commit = hub.repositories["models", repo_id].resolve("main")

    def answer_with_it(handler):
        handler.path = handler.path.replace(handler.path.split("/tree/")[1].split("?")[0], hub.last_commit)
        handler.address = handler.address._replace(path=handler.path.split("?")[0])
        handler.serve()

    hub.faults += [fault_at("commit", hub, store_another_config), fault_at("verify", hub, answer_with_it)]
    with pytest.raises(ClientError, match="PushError.*config.json: what arrived is not what is on disk"):
        client.push(folder, repo_id)


def test_a_token_without_the_right_to_write_is_a_push_error(client, folder, repo_id):
    client.as_user(OTHER_TOKEN)
    with pytest.raises(ClientError, match="PushError.*403"):
        client.push(folder, repo_id)


def test_a_missing_token_is_told(hub, client, folder, repo_id):
    client.as_user(None)
    number = len(hub.requests)
    with pytest.raises(ClientError, match="PushError.*no Hub token.*HF_TOKEN.*hf auth login"):
        client.push(folder, repo_id)
    assert len(hub.requests) == number


def test_metadata_that_the_hub_refuses_is_told_before_the_upload(hub, client, folder, repo_id):
    (folder / "README.md").write_text("---\nlicense: {not: text}\n---\n")
    with pytest.raises(ClientError, match="PushError.*license"):
        client.push(folder, repo_id)
    assert not any(repo_id in request["path"] and "preupload" in request["path"] for request in hub.requests)


def test_a_failure_at_the_end_of_a_recipe_is_exit_code_3_and_the_rest_goes_up(hub, client, folder, tmp_path, repo_id):
    second = make_model_folder(tmp_path / "generator", seed=2)
    hub.faults.append(fault_at("commit", hub, answer(403)))
    pushes = {str(folder): repo_id, str(second): f"{repo_id}-2"}
    with pytest.raises(ClientError, match="SystemExit: 3"):
        client.call("hub_client", "push_at_the_end", pushes)
    assert "model.safetensors" in client.call("hub_client", "remote_files", f"{repo_id}-2")


def test_the_token_is_found_nowhere(service, hub, client, folder, repo_id):
    """Run after the others of this file: it looks through everything that they sent, stored and logged."""
    client.push(folder, repo_id)
    hub.faults.append(fault_at("commit", hub, answer(403)))
    replace_weights(folder, seed=5)
    with pytest.raises(ClientError):
        client.push(folder, repo_id)
    canary, place = TOKEN.encode(), service[2]
    assert all(canary not in request["body"] for request in hub.requests)
    # Large files go to an address outside the Hub, which must not see the token.
    assert not any(request["authorized"] for request in hub.requests if request["method"] == "PUT")
    assert (place / "client.log").is_file() and sum(path.is_file() for path in place.rglob("*")) > 20
    assert files_that_hold(TOKEN, place) == []


# What needs no server


def test_the_repositories_of_the_test_hub_are_sound(service):
    hub = service[0]
    for repository in hub.repositories.values():
        done = subprocess.run(
            ["git", "--git-dir", repository.folder, "fsck", "--strict"], capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr.strip(), done.stderr


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        select_files(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not a model folder"):
        select_files(tmp_path)


@pytest.mark.parametrize(
    ("secret", "name"),
    [
        ("hf_" + "a1B2c3D4e5" * 4, "a Hugging Face token"),
        ("AKIA" + "ABCDEFGH12345678", "an AWS access key"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("ghp_" + "a" * 36, "a GitHub token"),
        ("github_pat_" + "a1" * 30, "a GitHub token"),
        ("api_org_" + "a1B2c3D4e5" * 4, "a Hugging Face token"),
        ("ASIA" + "ABCDEFGH12345678", "an AWS access key"),
        ("-----BEGIN " + "PRIVATE KEY-----", "a private key"),
        ("xoxb" + "-123456789012-abcdefgh", "a Slack token"),
        ("AIza" + "a1B2c3D4e5" * 3 + "abcde", "a Google API key"),
        ("https://me:" + "word@host/text.gz", "a password in an address"),
    ],
)
def test_a_secret_in_a_text_file_stops_the_push(folder, secret, name):
    (folder / "recipe.yaml").write_text(f"learning_rate: 1e-3\nrun_name: {secret}\n")
    with pytest.raises(InputError, match=f"recipe.yaml, line 2: this looks like {name}") as error:
        select_files(folder)
    assert secret not in str(error.value)


@pytest.mark.parametrize("name", ["README.md", "config.json", "tokenizer_config.json", "vocab.txt", "merges.txt"])
def test_a_secret_in_any_text_that_goes_up_stops_the_push(folder, name):
    with open(folder / name, "a") as file:
        file.write("\nhf_" + "a1B2c3D4e5" * 4)
    with pytest.raises(InputError, match=rf"{name}, line \d+: this looks like a Hugging Face token"):
        select_files(folder)


def test_the_token_in_use_is_a_secret_whatever_it_looks_like(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "no-usual-token")
    (folder / "corpus.json").write_text('{"comment": "no-usual-token"}')
    with pytest.raises(InputError, match="your Hub token"):
        select_files(folder)


@pytest.mark.parametrize("name", ["electra", "me/a/b", "me/", "me/ä", ""])
def test_a_name_that_is_no_repository_is_refused(name):
    with pytest.raises(InputError, match="hub_model_id: "):
        check_repo_id(name, "hub_model_id")


def training_arguments(tmp_path, **settings):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_the_trainer_itself_never_pushes(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    arguments = training_arguments(tmp_path, push_to_hub=True, hub_model_id="me/electra-small-eo")
    settings = take_push_settings(arguments)
    assert arguments.push_to_hub is False
    assert settings == PushSettings(True, "me/electra-small-eo", hub_private_repo=True, hub_revision=None)


def test_only_a_plain_no_makes_a_run_public(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    wanted = {"push_to_hub": True, "hub_model_id": "me/x"}
    assert take_push_settings(training_arguments(tmp_path, hub_private_repo=True, **wanted)).hub_private_repo
    assert not take_push_settings(training_arguments(tmp_path, hub_private_repo=False, **wanted)).hub_private_repo


def test_discriminator_and_generator_get_names_that_belong_together():
    for name in ("me/x", "me/x-discriminator"):
        settings = PushSettings(True, name)
        assert (settings.discriminator_repo_id, settings.generator_repo_id) == ("me/x-discriminator", "me/x-generator")


def test_without_push_to_hub_nothing_is_pushed_and_no_repository_is_named(tmp_path):
    settings = take_push_settings(training_arguments(tmp_path, hub_model_id="me/x"))
    assert (settings.discriminator_repo_id, settings.generator_repo_id, settings.repo_id) == (None, None, None)
    push_results({tmp_path: None}, settings)  # would end the process: the folder holds no model


def test_recipe_yaml_records_the_push_as_the_user_set_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    arguments = training_arguments(tmp_path, push_to_hub=True, hub_model_id="me/x")
    push = take_push_settings(arguments)
    save_recipe(tmp_path / "recipe.yaml", arguments, push)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert (recipe["push_to_hub"], recipe["hub_model_id"], recipe["hub_private_repo"]) == (True, "me/x", True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hub_token": TOKEN}, "hub_token.*HF_TOKEN.*hf auth login"),
        ({"push_to_hub": True}, "hub_model_id is missing"),
        ({"push_to_hub": True, "hub_model_id": "electra"}, "hub_model_id: expected user/name"),
        ({"push_to_hub": True, "hub_model_id": "me/x"}, "there is no Hub token"),
    ],
)
def test_what_would_let_the_push_fail_is_told_before_training(tmp_path, monkeypatch, settings, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match=message) as error:
        take_push_settings(training_arguments(tmp_path, **settings))
    assert TOKEN not in str(error.value)
