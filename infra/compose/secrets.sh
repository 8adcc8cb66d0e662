#!/usr/bin/env bash
# Make the stack's secrets, each once: a file that is there stays as it is. Prints no secret.
#   infra/compose/secrets.sh [FOLDER]
# The folder is closed to others; the files in it are readable, because compose shows them to
# containers with the mode that they have here, and those run as several users.
set -euo pipefail
folder=${1:-$(cd "$(dirname "$0")" && pwd)/secrets}
mkdir -p "$folder"
chmod 700 "$folder"

random() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
make() { # NAME VALUE
  if [ -s "$folder/$1" ]; then
    echo "kept $1"
  else
    printf '%s\n' "$2" >"$folder/$1"
    chmod 644 "$folder/$1"
    echo "made $1"
  fi
}

make postgres_password "$(random)"
make grafana_password "$(random)"
make ray_token "$(random)"
make s3_credentials "$(printf '[default]\naws_access_key_id = xtdist\naws_secret_access_key = %s' "$(random)")"
