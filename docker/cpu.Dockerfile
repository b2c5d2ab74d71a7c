# A bundle on CPUs, or with `--build-arg EXTRA=rtx` on RTX GPUs. Without PyTorch: what exports runs
# elsewhere. From a checkout: docker build -f docker/cpu.Dockerfile -t csd:cpu .
FROM python:3.12.11-slim-bookworm AS build
ARG EXTRA=cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The distribution keeps one version of a package only, so a pinned one cannot be had a month later.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY export/ export/
COPY models/ models/
COPY plugins/ plugins/
COPY runtime/ runtime/
COPY tools/ tools/
# The host library is optional where a wheel is built: here it must be in it.
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m zipfile --list /wheels/csd_edge-*.whl | grep --quiet csd/plugins/_host
# An environment without pip, that is copied as it is.
RUN python -m venv --without-pip /opt/csd \
    && python -m pip --python /opt/csd/bin/python install --no-cache-dir \
    --constraint constraints.txt "$(echo /wheels/csd_edge-*.whl)[$EXTRA]"

FROM python:3.12.11-slim-bookworm
COPY --from=build /opt/csd /opt/csd
# Kernels and hashes are kept in /cache; whoever the container runs as may write there.
RUN useradd --uid 10001 --no-create-home --home-dir /work csd \
    && install --directory --mode=1777 /cache /work
ENV PATH=/opt/csd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    CSD_CACHE_DIR=/cache
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["csd"]
CMD ["--help"]
