# An image in which `gcvit-mm` runs:
#   docker build --tag gcvit_mm .                     # PyTorch with CUDA
#   docker build --tag gcvit_mm --build-arg CPU=1 .   # PyTorch for CPUs, a fifth of the size
#   docker build --target test .                      # runs the tests too
#   docker run --gpus all --shm-size=8g --volume "$PWD:/work" gcvit_mm train mask_rcnn_gcvit_tiny_coco
FROM python:3.13-slim AS run
ARG CPU
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /gcvit_mm
COPY . .
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/venv && make setup-run CPU="$CPU"

FROM run AS test
RUN make test

FROM run
WORKDIR /work
ENTRYPOINT ["gcvit-mm"]
