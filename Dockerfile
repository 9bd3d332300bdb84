# perpo in a container; docs/installing.md has the commands. It has not been built yet: no Docker was at hand.
#   docker build -t perpo .                                      for CUDA and CPUs
#   docker build -t perpo --build-arg TORCH_INDEX=URL .          with another build of torch: a smaller one for CPUs alone
#   docker build -t perpo --build-arg "EXTRAS=[openai,pdf]" .    with extras of pyproject.toml
FROM python:3.11-slim AS wheel
WORKDIR /project
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY configs configs
COPY stages stages
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . && cp constraints.txt /wheel

FROM python:3.11-slim
ARG TORCH_INDEX=
ARG EXTRAS=
# Compiled layers need a compiler at run time, a folder of `perpo init` needs Make.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheel /wheel
# torch alone may come from another index; its version, and those of all others, from the lock.
RUN pip install --no-cache-dir --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        "$(grep '^torch==' /wheel/constraints.txt)" \
    && pip install --no-cache-dir --constraint /wheel/constraints.txt "$(ls /wheel/*.whl)${EXTRAS}" \
    && useradd --create-home --uid 1000 perpo \
    && mkdir --parents /runs/data \
    && chown --recursive perpo:perpo /runs
USER perpo
WORKDIR /runs
ENV OMP_WAIT_POLICY=PASSIVE
VOLUME /runs/data
ENTRYPOINT ["perpo"]
CMD ["--help"]
