# The server as an image. Models are mounted, never copied: one image serves any of them.
#
#   docker build --target cpu  -t vibematch-server:cpu  .   tritonserver 2.51 from a wheel, no GPU
#   docker build --target gpu  -t vibematch-server:gpu  .   NVIDIA's Triton container
#   docker build --target plan -t vibematch-plan:gpu    .   makes TensorRT plans for it
#
# deploy/compose.yaml and docs/deployment.md say how to run them: a read-only root, /tmp as tmpfs,
# /dev/shm of 1 GiB, no capabilities.

# One release for both: a plan runs only with the TensorRT that made it.
ARG TRITON_RELEASE=26.09

FROM python:3.11.14-slim-bookworm AS cpu-build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/pip PIP_CACHE_DIR=/var/cache/pip sh deploy/install.sh /opt/vibematch cpu

FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3 AS gpu-build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/pip PIP_CACHE_DIR=/var/cache/pip sh deploy/install.sh /opt/vibematch gpu

FROM nvcr.io/nvidia/tensorrt:${TRITON_RELEASE}-py3 AS plan-build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/pip PIP_CACHE_DIR=/var/cache/pip sh deploy/install.sh /opt/vibematch plan \
    && /opt/vibematch/bin/python3 -c "import tensorrt"  # better here than at the first start

FROM nvcr.io/nvidia/tensorrt:${TRITON_RELEASE}-py3 AS plan
LABEL org.opencontainers.image.title="vibematch-plan" \
      org.opencontainers.image.description="Makes TensorRT plans for the GPU it runs on" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=plan-build /opt/vibematch /opt/vibematch
# A new Docker volume takes its owner from here.
RUN install -d -o 10001 -g 10001 /var/cache/vibematch /srv/vibematch/served
ENV PATH=/opt/vibematch/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
ENTRYPOINT ["vibematch-plan"]
CMD ["/srv/vibematch/model_repository", "/var/cache/vibematch", "/srv/vibematch/served"]

FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3 AS gpu
LABEL org.opencontainers.image.title="vibematch-server" \
      org.opencontainers.image.description="Photo → style vector: Triton on an NVIDIA GPU" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=gpu-build /opt/vibematch /opt/vibematch
RUN install -d -o 10001 -g 10001 /var/cache/vibematch
ENV PATH=/opt/vibematch/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    VIBEMATCH_REPOSITORY=/srv/vibematch/model_repository \
    VIBEMATCH_PROFILE=onnxruntime
USER 10001:10001
WORKDIR /srv/vibematch
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# The first start may wait for ONNX Runtime to build its TensorRT engine.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/v2/models/style_encoder/ready', timeout=4)"]
ENTRYPOINT ["vibematch-server"]

# The last stage is what `docker build` makes when no target is named.
FROM python:3.11.14-slim-bookworm AS cpu
LABEL org.opencontainers.image.title="vibematch-server" \
      org.opencontainers.image.description="Photo → style vector: Triton on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=cpu-build /opt/vibematch /opt/vibematch
ENV PATH=/opt/vibematch/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    VIBEMATCH_REPOSITORY=/srv/vibematch/model_repository \
    VIBEMATCH_PROFILE=cpu
USER 10001:10001
WORKDIR /srv/vibematch
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/v2/models/style_encoder/ready', timeout=4)"]
ENTRYPOINT ["vibematch-server"]
