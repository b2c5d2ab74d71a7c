# A bundle on a Jetson with JetPack 6: TensorRT is that of NVIDIA's image. Without PyTorch.
# On the Jetson, from a checkout: docker build -f docker/l4t.Dockerfile -t csd:l4t .
FROM ubuntu:22.04 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The distribution keeps one version of a package only, so a pinned one cannot be had a month later.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY export/ export/
COPY models/ models/
COPY plugins/ plugins/
COPY runtime/ runtime/
COPY tools/ tools/
# The environment sees the packages of the system that it is copied to, TensorRT's among them. It
# has the same Python at the same place: 3.10 of Ubuntu 22.04, on which JetPack 6 is built.
# The host library is optional where a wheel is built: here it must be in it.
RUN python3 -m venv --system-site-packages /opt/csd \
    && /opt/csd/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python3 -m zipfile --list /wheels/csd_edge-*.whl | grep --quiet csd/plugins/_host \
    && /opt/csd/bin/pip install --no-cache-dir --constraint constraints.txt \
    /wheels/csd_edge-*.whl 'cuda-python>=12.6,<13'

# CUDA 12.6 and TensorRT 10.3, those of JetPack 6.1 and 6.2.
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
COPY --from=build /opt/csd /opt/csd
# Kernels and hashes are kept in /cache; whoever the container runs as may write there. Its group
# video is the one that may use a Jetson's GPU.
RUN useradd --uid 10001 --no-create-home --home-dir /work --groups video csd \
    && install --directory --mode=1777 /cache /work
ENV PATH=/opt/csd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    CSD_CACHE_DIR=/cache
WORKDIR /work
USER 10001
ENTRYPOINT ["csd"]
CMD ["--help"]
