# docker build --tag electra-hf .
# docker run --gpus all --volume data:/data --env HF_TOKEN electra-hf recipes/pretrain.py --config recipes/esperanto_small/pretrain.yaml

# Any image with Python and a CUDA build of PyTorch serves. For a build that repeats, pin it by digest: NAME:TAG@sha256:...
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE_IMAGE}

# The version of tini follows the base image's distribution.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

# The user owns the volume and nothing else. It is named because PyTorch asks for its name, and used by its number so
# that an orchestrator can see that it is not root.
RUN useradd --uid 10001 --no-create-home --home-dir /data electra \
    && mkdir --parents /data/hf /data/outputs \
    && chown --recursive electra:electra /data
ENV HF_HOME=/data/hf PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:${PATH}

# Dependencies change more rarely than the code: a layer of their own. The base's torch, built for its CUDA, stays.
# (Without --use-pep517 an older pip cannot build seqeval, which comes as source only.)
WORKDIR /opt/electra_hf
COPY pyproject.toml constraints.txt LICENSE ./
COPY electra_hf/__init__.py electra_hf/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --system-site-packages /opt/venv \
    && sed --in-place '/^torch==/d' constraints.txt \
    && python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> constraints.txt \
    && touch README.md \
    && python -m pip install --use-pep517 --constraint constraints.txt --editable '.[tensorboard]'

# What a recipe writes to outputs/ belongs on the volume.
COPY . .
RUN ln --symbolic /data/outputs outputs

USER 10001:10001
VOLUME /data

# `docker stop` must end in a checkpoint. accelerate does not pass SIGTERM on, so tini signals the whole group (-g); and
# accelerate would die of that signal at once, and the container with it, so it ignores it. A recipe sets its own handler.
ENTRYPOINT ["tini", "-g", "--", "env", "--ignore-signal=TERM", "accelerate", "launch"]
CMD ["--help"]
