# xtdist on NVIDIA GPUs. CUDA's libraries come with torch's wheels: the host brings the driver and the
# container toolkit, nothing else, and the base is the same small one. No CUDA toolkit is here: Triton
# brings what torch.compile needs. Offloading to NVMe alone is compiled against one: for that, build on
# this image, install NVIDIA's toolkit of torch's CUDA version, and set CUDA_HOME.
#   docker build -f infra/docker/cuda.Dockerfile -t xtdist:0.1.0-cuda .
# An older driver wants wheels for an older CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
# A digest nails the base down; `docker buildx imagetools inspect python:3.11.14-slim-bookworm` says it:
#   --build-arg BASE=python:3.11.14-slim-bookworm@sha256:…
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# From what changes least to what changes most: versions, torch, the other packages, our code.
COPY constraints.txt ./
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" \
      --extra-index-url https://pypi.org/simple torch
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['serve'], *p['optional-dependencies']['structured'], *p['optional-dependencies']['sentencepiece'], sep='\n')" > requirements.txt \
 && pip install --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY xtdist xtdist
RUN pip install --no-deps . && pip check

FROM ${BASE} AS runtime
ARG REVISION=unknown
LABEL org.opencontainers.image.title="xtdist" \
      org.opencontainers.image.description="Distributed training and serving of transformer language models on Ray (CUDA)" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# g++: what torch.compile and Triton write is compiled at first use.
# libaio: offloading to NVMe. wget: KubeRay's probes. Debian keeps one version of each, which is why none is named here.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libaio-dev wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 xtdist \
 && useradd --uid 1000 --gid 1000 --create-home xtdist \
 && install --directory --owner=1000 --group=1000 /opt/xtdist
COPY --from=build /opt/venv /opt/venv
# HOME: Ray's launcher takes it from here, not from the user, and puts its files there.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/xtdist \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/xtdist
COPY jobs jobs
USER 1000:1000
# What is healthy depends on what it runs (a head, a worker, a job): compose and Kubernetes say it.
HEALTHCHECK NONE
CMD ["xtdist", "--help"]
