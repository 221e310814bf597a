# The server as an image, for NVIDIA GPUs and for the CPU. How to use it: deploy/README.md.
#
#   docker build -t transformers-openai-api:cuda .
#   docker run --gpus all -p 127.0.0.1:7088:7088 transformers-openai-api:cuda --hf-model demo

# The Python that the tests run with. torch's packages bring CUDA's libraries, so no CUDA image is
# needed underneath.
FROM python:3.11-slim-bookworm

# A compiler stays in the image, because code is compiled at the first start: the CPU kernels for the
# processor that is there, and Triton's launchers for the GPU. Both are kept in the cache volume.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# The number, not the name, lets an orchestrator see that it is not root.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin server \
    && install -d -o server -g server -m 0755 /cache

WORKDIR /opt/transformers-openai-api

# Alone in its layer: it changes seldom and is by far the largest. TORCH_INDEX may name a package
# index with another build of torch, such as PyTorch's own for the CPU; the default brings CUDA.
ARG TORCH_INDEX=""
COPY requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt

# What .dockerignore lets through: the rooms, the built-in models and the health check.
COPY . .

# One volume keeps what is slow to get: weights from the Hub, CPU kernels, Triton's kernels.
ENV HF_HOME=/cache/huggingface \
    CACHE_DIRECTORY=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
VOLUME /cache

USER 10001:10001
EXPOSE 7088

# 503 while the model loads or is downloaded, so the first start has time. It follows PORT: set the
# port by that variable, not by an argument.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "deploy/docker/health_check.py"]

# The launcher ends its rooms in order, and open requests with an error.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "launcher.py"]
