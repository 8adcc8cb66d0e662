terraform {
  required_version = ">= 1.9, < 2.0"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 7.4"
    }
  }

  # `terraform init -backend-config=backend.hcl` reads bucket and prefix from a file that is not in the
  # repository.
  backend "gcs" {}
}

provider "google" {
  project        = var.project
  region         = var.region
  default_labels = merge({ project = var.name, managed-by = "terraform" }, var.labels)
}
