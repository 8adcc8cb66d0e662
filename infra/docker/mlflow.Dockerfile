# The MLflow server, of the same version as the clients in our images, with PostgreSQL and S3.
#   docker build -f infra/docker/mlflow.Dockerfile -t xtdist:0.1.0-mlflow .
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="xtdist-mlflow" \
      org.opencontainers.image.description="MLflow tracking server with PostgreSQL and S3" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/mlflow
COPY constraints.txt ./
RUN pip install --constraint constraints.txt mlflow boto3 psycopg2-binary \
 && groupadd --gid 1000 mlflow \
 && useradd --uid 1000 --gid 1000 --create-home mlflow
COPY infra/docker/mlflow.sh /usr/local/bin/mlflow.sh
USER 1000:1000
EXPOSE 5000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
ENTRYPOINT ["sh", "/usr/local/bin/mlflow.sh"]
