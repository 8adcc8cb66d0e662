resource "google_service_account" "nodes" {
  account_id   = "${var.name}-nodes"
  display_name = "${var.name}: nodes (logs, metrics, images)"
}

resource "google_project_iam_member" "nodes" {
  for_each = toset(["roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"])

  project = var.project
  role    = each.key
  member  = google_service_account.nodes.member
}

# The identity of pods: a service account of Kubernetes stands for one of Google's.
resource "google_service_account" "bucket" {
  account_id   = "${var.name}-bucket"
  display_name = "${var.name}: pods that use the bucket"
}

resource "google_storage_bucket_iam_member" "bucket" {
  bucket = google_storage_bucket.this.name
  role   = "roles/storage.objectUser"
  member = google_service_account.bucket.member
}

resource "google_service_account_iam_member" "bucket" {
  for_each = toset(var.service_accounts)

  service_account_id = google_service_account.bucket.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.project}.svc.id.goog[${var.namespace}/${each.key}]"

  depends_on = [google_container_cluster.this]
}
