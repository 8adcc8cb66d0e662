#!/bin/sh
# MLflow takes the database's address, password and all, from one variable; passwords come as files.
# A command line would show it to everyone who lists processes, hence the environment.
set -eu
: "${MLFLOW_ARTIFACTS:?where artifacts go, as in s3://mlflow}"
if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
  MLFLOW_BACKEND_STORE_URI=$(python -c '
import os, pathlib, urllib.parse
password = pathlib.Path(os.environ["POSTGRES_PASSWORD_FILE"]).read_text().strip()
user, host, name = (os.environ[k] for k in ("POSTGRES_USER", "POSTGRES_HOST", "POSTGRES_DB"))
quoted = urllib.parse.quote(password, safe="")
print(f"postgresql+psycopg2://{user}:{quoted}@{host}/{name}")')
  export MLFLOW_BACKEND_STORE_URI
fi
: "${MLFLOW_BACKEND_STORE_URI:?the address of the database, or POSTGRES_PASSWORD_FILE and its companions}"
if [ "${1:-}" = upgrade ]; then # the tables, after a new version; make a backup first
  exec python -c 'import os; from mlflow.db import commands; commands(["upgrade", os.environ["MLFLOW_BACKEND_STORE_URI"]])'
fi
# Hosts that requests may name: a browser that was lured here names another one.
exec mlflow server --host 0.0.0.0 --port 5000 --workers "${MLFLOW_WORKERS:-2}" \
  --artifacts-destination "$MLFLOW_ARTIFACTS" --allowed-hosts "${MLFLOW_HOSTS:-localhost:5000}"
