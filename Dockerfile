# The CPU server: what `vibematch serve` runs on a laptop, as an image.
#
#   docker build -t vibematch-server .
#   docker run --shm-size=1g -p 8000-8002:8000-8002 \
#     -v "$PWD/build/model_repository:/srv/vibematch/model_repository:ro" vibematch-server

FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/vibematch
COPY constraints.txt ./
# What serving imports, and no more: training and export would add torch.
RUN /opt/vibematch/bin/pip install -c constraints.txt \
    numpy nvidia-pytriton onnxruntime pillow "tritonclient[grpc]"
COPY . .
RUN /opt/vibematch/bin/pip install --no-deps ./client .

FROM python:3.11.14-slim-bookworm AS cpu
RUN useradd --uid 10001 --create-home --home-dir /srv/vibematch vibematch
COPY --from=build /opt/vibematch /opt/vibematch
ENV PATH=/opt/vibematch/bin:$PATH PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER vibematch
WORKDIR /srv/vibematch
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
CMD ["vibematch", "serve", "--repository", "model_repository", "--host", "0.0.0.0"]
