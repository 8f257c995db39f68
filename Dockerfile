# The serving image, for `docker build` with BuildKit (the default since Docker 23):
#   docker build --tag ducat-serve .                                  CUDA, and the CPU where there is no GPU
#   docker build --build-arg RUNTIME=cpu --tag ducat-serve:cpu .      CPU only, without the CUDA libraries
# The model comes in when the container starts, or in a later image:
#   docker run --gpus all -p 3000:3000 -v "$PWD/models:/models:ro" ducat-serve
#   FROM ducat-serve
#   COPY model.onnx /models/model.onnx

# One base for all stages: a virtual environment works only with the interpreter that made it.
FROM python:3.11-slim-bookworm AS base

FROM base AS dependencies
ARG RUNTIME=gpu
# pip installs into the image's environment from one of its own, which is not copied: a server that is taken over finds
# no installer.
RUN python -m venv /build/tools && python -m venv --without-pip /opt/venv
# Dependencies come before the source, so that a change of the source does not fetch them again. Installing
# the project without its packages brings exactly what the extras name; the empty project then goes.
# pip only warns of an extra that does not exist, hence the look at RUNTIME.
WORKDIR /build/dependencies
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    case "${RUNTIME}" in cpu | gpu) ;; *) echo "RUNTIME is cpu or gpu, not '${RUNTIME}'" >&2; exit 1 ;; esac \
    && touch LICENSE README.md \
    && /build/tools/bin/pip install --constraint constraints.txt cyclonedx-bom \
    && /build/tools/bin/pip --python /opt/venv install --constraint constraints.txt ".[serve,sign,${RUNTIME}]" \
    && /build/tools/bin/pip --python /opt/venv uninstall --yes ducat-serve

FROM dependencies AS builder
WORKDIR /build/source
COPY pyproject.toml LICENSE README.md ./
COPY ducat_serve ducat_serve
COPY export export
COPY service service
COPY training training
# The project by itself, to be laid over the dependencies; then what the image will hold is checked and listed.
RUN --mount=type=cache,target=/root/.cache/pip \
    /build/tools/bin/pip --python /opt/venv install --no-deps --prefix /build/project . \
    && cp -r /build/project/. /opt/venv \
    && /build/tools/bin/pip --python /opt/venv check \
    && mkdir -p /build/project/share/ducat-serve \
    && /build/tools/bin/cyclonedx-py environment --output-reproducible \
        --output-file /build/project/share/ducat-serve/sbom.cdx.json /opt/venv

FROM base
# compute and utility: the host's CUDA driver and nvidia-smi, all that inference needs. CUDA itself and cuDNN are
# wheels in the virtual environment. Both variables mean nothing where the NVIDIA runtime is not installed.
# ORT_DISABLE_TELEMETRY: the released ONNX Runtime (1.29 and later) reports to Microsoft unless told not to.
ENV PATH="/opt/venv/bin:${PATH}" \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    BENTOML_DO_NOT_TRACK=True \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The base's own pip goes too.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin ducat \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/pip*
# The gigabytes of dependencies are a layer of their own below the project, so that a new version of the project
# is a push and a pull of some hundred kilobytes.
COPY --from=dependencies /opt/venv /opt/venv
# With the software bill of materials (CycloneDX) of both, as share/ducat-serve/sbom.cdx.json.
COPY --from=builder /build/project /opt/venv
WORKDIR /models
# As a number, so that Kubernetes can tell that it is not root (runAsNonRoot).
USER 10001:10001
EXPOSE 3000
# 503 until the model is loaded and warm, which start-period allows for. No proxy: urllib would take the
# container's HTTP_PROXY even for 127.0.0.1. -I: no module from the working directory.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:3000/readyz', timeout=4)"]
# `ducat serve` becomes the server by exec, so SIGTERM from `docker stop` reaches it. Where it dies the container ends,
# and the restart policy decides. --port is given because for a Service named ducat-serve Kubernetes sets
# DUCAT_SERVE_PORT=tcp://..., which the option would read.
ENTRYPOINT ["ducat"]
CMD ["serve", "/models/model.onnx", "--host", "0.0.0.0", "--port", "3000"]
