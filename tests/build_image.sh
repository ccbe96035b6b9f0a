#!/usr/bin/env bash
# Build the unmodified Dockerfile with buildah, no Docker daemon needed, and run its entry point as the image's user.
#
# The base is a stand-in: a minimal Debian with Python, and this machine's own torch mounted where the base image has it.
# So this proves instructions, layers, user, paths and entry point, not CUDA. Needs root, network and Debian's packages
# (apt-get install buildah crun debootstrap); where one is missing it says so and skips with code 77.
#
#   sudo PYTHON=.venv/bin/python tests/build_image.sh [folder for the images, default: a temporary one]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

skip() {
    echo "skipped: $1"
    exit 77
}

[ "$(id -u)" = 0 ] || skip "building needs root"
for tool in buildah crun debootstrap; do
    command -v "$tool" > /dev/null || skip "$tool is not installed"
done
[ "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.11 ] \
    || skip "the torch to lend to Debian 12 must be one for Python 3.11"
site=$("$PYTHON" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent.parent)') || skip "there is no torch"

work=${1:-$(mktemp --directory)}
mkdir -p "$work"
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$work/images" --runroot "$work/run" "$@"; }
trap '[ "${1:-}" ] || rm -rf "$work"' EXIT

if [ ! -d "$work/rootfs" ]; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/rootfs.part" > "$work/debootstrap.log" \
        || skip "debootstrap found no Debian archive (see $work/debootstrap.log)"
    rm -rf "$work/rootfs.part"/var/cache/apt/archives/*.deb
    mv "$work/rootfs.part" "$work/rootfs"
fi
base=$(buildah from scratch)
buildah add --quiet "$base" "$work/rootfs" /
buildah commit --quiet "$base" localhost/standin:test > /dev/null
buildah rm "$base" > /dev/null

lent=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
for part in "$site"/torch "$site"/torchgen "$site"/torch-*.dist-info; do
    lent+=(--volume "$part:/usr/lib/python3/dist-packages/$(basename "$part"):ro")
done
buildah bud --network host --build-arg BASE_IMAGE=localhost/standin:test "${lent[@]}" --tag localhost/electra-hf:test .

buildah inspect --type image localhost/electra-hf:test > "$work/image.json"
"$PYTHON" - "$work/image.json" << 'END'
import json, sys

config = json.load(open(sys.argv[1]))["OCIv1"]["config"]
assert config["User"] == "10001:10001", config["User"]
assert config["Volumes"] == {"/data": {}}, config["Volumes"]
assert config["Entrypoint"][-2:] == ["accelerate", "launch"], config["Entrypoint"]
assert "HF_HOME=/data/hf" in config["Env"], config["Env"]
assert not any("TOKEN" in variable.split("=")[0] for variable in config["Env"]), config["Env"]
END

container=$(buildah from localhost/electra-hf:test)
inside() { buildah run "${lent[@]}" "$container" -- "$@"; }
[ "$(inside id -u)" = 10001 ]
inside sh -c 'touch /data/hf/x outputs/x && ! touch electra_hf/x 2> /dev/null && test ! -e tests && test ! -e .git'
inside tini -g -- env --ignore-signal=TERM accelerate launch --num_processes 1 recipes/push.py --folder /nowhere --repo_id me/x 2>&1 \
    | tee "$work/run.log" | tail -3 || true
grep -q "there is no such folder" "$work/run.log"
echo "built and ran: localhost/electra-hf:test"
