"""Where datasets lie: local folders, and S3 and Google Cloud Storage behind the same interface."""
