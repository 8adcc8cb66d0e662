#!/bin/sh
# The gateway takes its keys from variables; everyone else reads them from one file, and so does this.
set -eu
value() { sed -n "s/^$1 *= *//p" /run/secrets/s3_credentials; }
ROOT_ACCESS_KEY_ID=$(value aws_access_key_id)
ROOT_SECRET_ACCESS_KEY=$(value aws_secret_access_key)
export ROOT_ACCESS_KEY_ID ROOT_SECRET_ACCESS_KEY
exec versitygw posix --sidecar /metadata /data
