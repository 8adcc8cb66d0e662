"""Make buckets that are named and not there yet: ``python bucket.py mlflow runs``."""

import sys

import boto3

store = boto3.client("s3")
have = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
for name in sys.argv[1:]:
    if name not in have:
        store.create_bucket(Bucket=name)
    print(name, "was there" if name in have else "made")
