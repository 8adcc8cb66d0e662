output "cluster_name" {
  description = "For: gcloud container clusters get-credentials"
  value       = google_container_cluster.this.name
}

output "region" {
  description = "For: gcloud container clusters get-credentials --region"
  value       = var.region
}

output "bucket" {
  description = "The chart's objectStore.bucket; runs go to gs://BUCKET/runs"
  value       = google_storage_bucket.this.name
}

output "service_account_annotations" {
  description = "The chart's serviceAccount.annotations: what makes pods take the bucket's identity"
  value       = { "iam.gke.io/gcp-service-account" = google_service_account.bucket.email }
}

output "bucket_service_account" {
  description = "The Google service account that HMAC keys for MLflow are made for"
  value       = google_service_account.bucket.email
}

output "gpu_pools" {
  description = "GPU node pools by the value of their label xtdist/pool, and whether they may be taken away"
  value       = { for name, pool in var.gpu_pools : name => pool.spot ? "SPOT" : "ON_DEMAND" }
}
