"""What the test Hub answers: one function per call of its HTTP interface (hub_server.py does the talking)."""

import base64
import hashlib
import json
import re
import time
import urllib.parse
from pathlib import Path

import yaml
from hub_repository import LFS_SUFFIXES, POINTER, HubError, Repository

ROUTES = []
KIND = r"(?P<kind>models|datasets|spaces)"
NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"  # quoted by the clients: refs%2Fpr%2F1
# Web addresses of models have no prefix, those of datasets and Spaces have.
PREFIX = r"((?P<kind>datasets|spaces)/)?"


def route(method, pattern):
    def register(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


# Users, repositories, refs


@route("GET", "/api/whoami-v2")
def whoami(request):
    user = request.user()
    if user is None:
        raise HubError(401, "Invalid username or password.")
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    request.reply({"type": "user", "id": "1", "name": user, "fullname": user, "orgs": [], "auth": token})


@route("GET", "/api/agent-harnesses")
def agent_harnesses(request):
    request.reply({"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/repos/create")
def create_repository(request):
    wanted, user = json.loads(request.body), request.user()
    owner, kind = wanted.get("organization") or user, (wanted.get("type") or "model") + "s"
    if user is None or owner != user:
        raise HubError(403 if user else 401, f"You have no right to create a model under {owner}")
    name = f"{owner}/{wanted['name']}"
    url = f"{request.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
    private = wanted.get("visibility") == "private" or wanted.get("private", False)
    with request.hub.lock:
        if (kind, name) in request.hub.repositories:
            # The clients read the address even from this refusal.
            return request.reply({"error": "You already created this repo", "url": url, "name": name}, 409)
        request.hub.repositories[kind, name] = Repository(request.hub.folder / kind / f"{name}.git", name, private)
    request.reply({"url": url, "name": name, "id": "1"})


@route("DELETE", "/api/repos/delete")
def delete_repository(request):
    wanted = json.loads(request.body)
    kind, name = (
        (wanted.get("type") or "model") + "s",
        f"{wanted.get('organization') or request.user()}/{wanted['name']}",
    )
    request.repository(kind, name, write=True)
    del request.hub.repositories[kind, name]
    request.reply({})


@route("PUT", f"/api/{KIND}/{NAME}/settings")
def change_settings(request, kind, name):
    repository, wanted = request.repository(kind, name, write=True), json.loads(request.body)
    repository.private = wanted.get("visibility", "private" if repository.private else "public") == "private"
    repository.gated = wanted.get("gated", repository.gated)
    request.reply({"private": repository.private, "gated": repository.gated})


@route("GET", f"/api/{KIND}/{NAME}(/revision/{REVISION})?")
def info(request, kind, name, revision):
    repository = request.repository(kind, name)
    sha = repository.resolve(revision or "main")
    card = _card_data(repository, sha)
    date = next(repository.log(sha))[3]
    keys = ("library_name", "pipeline_tag", "model-index")
    identity = {"id": name, "modelId": name, "author": repository.owner, "sha": sha, "siblings": []}
    identity["siblings"] = [{"rfilename": entry.path} for entry in repository.entries(sha)]
    state = {"private": repository.private, "gated": repository.gated, "disabled": False}
    dates = {"lastModified": date, "createdAt": date, "downloads": 0, "likes": 0}
    about = {"cardData": card, "tags": card.get("tags") or [], **{key: card.get(key) for key in keys}}
    request.reply({"_id": "1", **identity, **state, **dates, **about})


@route("GET", f"/api/{KIND}/{NAME}/refs")
def refs(request, kind, name):
    found = {"branches": [], "tags": [], "converts": []}
    for group, short, ref, sha in request.repository(kind, name).refs():
        found[group].append({"name": short, "ref": ref, "targetCommit": sha})
    request.reply(found)


@route("GET", f"/api/{KIND}/{NAME}/commits/{REVISION}")
def commits(request, kind, name, revision):
    repository = request.repository(kind, name)
    keys = ("id", "title", "message", "date")
    rows = [dict(zip(keys, row, strict=True)) for row in repository.log(repository.resolve(revision))]
    rows = [{**row, "authors": [{"user": "tester"}]} for row in rows]
    request.reply(rows, headers={"X-Total-Count": str(len(rows))})


@route("POST", f"/api/{KIND}/{NAME}/branch/{REVISION}")
def create_branch(request, kind, name, revision):
    repository = request.repository(kind, name, write=True)
    start = json.loads(request.body or b"{}").get("startingPoint") or "main"
    _create_ref(request, repository, f"refs/heads/{revision}", repository.resolve(start))


@route("POST", f"/api/{KIND}/{NAME}/tag/{REVISION}")
def create_tag(request, kind, name, revision):
    repository = request.repository(kind, name, write=True)
    _create_ref(request, repository, f"refs/tags/{json.loads(request.body)['tag']}", repository.resolve(revision))


def _create_ref(request, repository, ref, sha):
    if repository.has_ref(ref):
        raise HubError(409, f"{ref} exists already")
    repository.git("update-ref", ref, sha)
    request.reply({})


# Upload


@route("POST", "/api/validate-yaml")
def validate_card(request):
    errors = []
    try:
        data = _front_matter(json.loads(request.body)["content"])
        if not isinstance(data.get("license", ""), (str, list)):
            errors.append({"message": '"license" must be a string'})
        for result in [result for index in data.get("model-index", []) for result in index["results"]]:
            missing = {"task", "dataset", "metrics"} - set(result)
            errors += [{"message": f'"model-index" lacks {key}'} for key in missing]
    except (yaml.YAMLError, AttributeError) as error:
        errors.append({"message": f"bad YAML: {error}"})
    request.reply({"errors": errors, "warnings": []}, 400 if errors else 200)


@route("POST", f"/api/{KIND}/{NAME}/preupload/{REVISION}")
def preupload(request, kind, name, revision):
    repository = request.repository(kind, name, write=True)
    sha = repository.resolve(revision)
    known = {entry.path: entry.lfs or entry.oid for entry in repository.entries(sha)}
    answers = []
    for file in json.loads(request.body)["files"]:
        large = file["path"].endswith(LFS_SUFFIXES) or b"\0" in base64.b64decode(file["sample"])
        mode = "lfs" if large or file["size"] > 10 * 2**20 else "regular"
        row = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known.get(file["path"])}
        answers.append(row)
    request.reply({"files": answers, "commitOid": sha})


@route("POST", rf"/{PREFIX}{NAME}\.git/info/lfs/objects/batch")
def lfs_batch(request, kind, name):
    wanted = json.loads(request.body)
    request.repository(kind, name, write=wanted["operation"] == "upload")
    objects = []
    for item in wanted["objects"]:
        href, row = f"{request.hub.url}/_lfs/{item['oid']}", {"oid": item["oid"], "size": item["size"]}
        if wanted["operation"] == "download":
            row["actions"] = {"download": {"href": href}}
        elif request.hub.files.size(item["oid"]) is None:
            row["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        objects.append(row)
    request.reply({"transfer": "basic", "objects": objects})


@route("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(request, oid):
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, "The content is not what its SHA-256 says")
    request.hub.files.path(oid).write_bytes(request.body)
    request.reply(headers={"ETag": f'"{oid}"'})


@route("POST", "/_lfs/(?P<oid>[0-9a-f]{64})/verify")
def lfs_verify(request, oid):
    if request.hub.files.size(oid) != json.loads(request.body)["size"]:
        raise HubError(404, "object not found")
    request.reply({})


@route("GET", f"/api/{KIND}/{NAME}/xet-(?P<access>read|write)-token/{REVISION}")
def xet_token(request, kind, name, access, revision):
    request.repository(kind, name, write=access == "write")
    if not request.hub.xet_url:
        raise HubError(404, "This server has no Xet storage")
    # hf_xet takes a local folder for a server (its own tests do), chunks into it and rebuilds from it for real.
    token = {"casUrl": request.hub.xet_url, "accessToken": "xet", "exp": int(time.time()) + 3600}
    names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
    request.reply(token, headers=dict(zip(names, map(str, token.values()), strict=True)))


@route("POST", f"/api/{KIND}/{NAME}/commit/{REVISION}")
def commit(request, kind, name, revision):
    repository = request.repository(kind, name, write=True)
    if not repository.has_ref(f"refs/heads/{revision}"):
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    header, added, deleted = {}, {}, []
    for line in request.body.splitlines():
        key, value = json.loads(line).values()
        if key == "header":
            header = value
        elif key == "file":
            content = value["content"]
            added[value["path"]] = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
        elif key == "lfsFile":
            size = request.hub.files.size(value["oid"])
            if size is None:
                raise HubError(400, f"LFS pointer to a file that does not exist: {value['path']}")
            added[value["path"]] = POINTER.format(oid=value["oid"], size=size).encode()
        else:
            deleted.append(value["path"] + ("/" if key == "deletedFolder" else ""))
    message = "\n\n".join(filter(None, [header["summary"], header.get("description")]))
    sha = repository.commit(revision, message, added, deleted, header.get("parentCommit"))
    request.reply({"success": True, "commitOid": sha, "commitUrl": f"{request.hub.url}/{name}/commit/{sha}"})


# Download


@route("GET", f"/api/{KIND}/{NAME}/tree/{REVISION}(/(?P<folder>.*))?")
def tree(request, kind, name, revision, folder):
    repository = request.repository(kind, name)
    sha = repository.resolve(revision)
    recursive = request.query.get("recursive", [""])[0].lower() in ("true", "1")
    prefix = folder.rstrip("/") + "/" if folder else ""
    inside = [entry for entry in repository.entries(sha) if entry.path.startswith(prefix)]
    if prefix and not inside:
        raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound", {"X-Repo-Commit": sha})
    folders, files = {}, []
    for entry in inside:
        parents = [str(parent) for parent in Path(entry.path).parents if len(str(parent)) > len(prefix)]
        parents = [parent for parent in parents if parent != "."]
        folders.update(dict.fromkeys(parents if recursive else parents[-1:]))
        if recursive or not parents:
            files.append(entry.as_json())
    oids = {path: repository.folder_oid(sha, path) for path in folders}
    request.reply([{"type": "directory", "oid": oids[path], "size": 0, "path": path} for path in folders] + files)


@route("POST", f"/api/{KIND}/{NAME}/paths-info/{REVISION}")
def paths_info(request, kind, name, revision):
    repository = request.repository(kind, name)
    if "json" in request.headers.get("content-type", ""):  # the JavaScript client; the Python one sends a form
        paths = json.loads(request.body)["paths"]
    else:
        paths = urllib.parse.parse_qs(request.body.decode()).get("paths", [])
    entries = repository.entries(repository.resolve(revision))
    request.reply([entry.as_json() for entry in entries if entry.path in paths])


@route("GET", f"/{PREFIX}{NAME}/resolve/{REVISION}/(?P<path>.+)")
def resolve(request, kind, name, revision, path):
    repository = request.repository(kind, name)
    sha = repository.resolve(revision)
    entry = repository.entry(sha, path)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.lfs or entry.oid}"'}
    if entry.lfs is None:
        return _send(request, repository.read(entry.oid), headers)
    headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": headers["ETag"]}
    if not request.hub.xet_url:
        return _send(request, request.hub.files.path(entry.lfs).read_bytes(), headers)
    if request.command == "GET":
        raise HubError(501, "This server hands out Xet files to Xet clients only")
    refresh = f"{request.hub.url}/api/{kind or 'models'}/{name}/xet-read-token/{sha}"
    headers |= {"X-Xet-Hash": request.hub.files.xet_hash(entry.lfs), "X-Xet-Refresh-Route": refresh}
    request.reply(None, 200, {**headers, "Content-Length": str(entry.size)})


@route("GET", f"/{PREFIX}{NAME}/raw/{REVISION}/(?P<path>.+)")
def raw(request, kind, name, revision, path):
    """What git itself holds: of a large file, its pointer."""
    repository = request.repository(kind, name)
    sha = repository.resolve(revision)
    request.reply(repository.read(repository.entry(sha, path).oid), headers={"X-Repo-Commit": sha})


def _send(request, data, headers):
    """The content, or the part of it that a Range header asks for."""
    headers = {"Accept-Ranges": "bytes", **headers}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not asked:
        return request.reply(data, headers=headers)
    first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
    request.reply(data[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})


def _front_matter(text):
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def _card_data(repository, sha):
    try:
        return _front_matter(repository.read(repository.entry(sha, "README.md").oid).decode())
    except HubError:
        return {}
