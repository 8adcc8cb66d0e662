output "cluster_name" {
  description = "For: aws eks update-kubeconfig --name"
  value       = aws_eks_cluster.this.name
}

output "region" {
  description = "For: aws eks update-kubeconfig --region, and the chart's objectStore.region"
  value       = var.region
}

output "bucket" {
  description = "The chart's objectStore.bucket; runs go to s3://BUCKET/runs"
  value       = aws_s3_bucket.this.bucket
}

output "service_account_annotations" {
  description = "The chart's serviceAccount.annotations: what makes pods take the bucket's role"
  value       = { "eks.amazonaws.com/role-arn" = aws_iam_role.pods["bucket"].arn }
}

output "autoscaler_role_arn" {
  description = "Role of the service account cluster-autoscaler in kube-system"
  value       = aws_iam_role.pods["cluster-autoscaler"].arn
}

output "file_system_id" {
  description = "The EFS file system of /shared, for the storage class efs-sc"
  value       = aws_efs_file_system.shared.id
}

output "gpu_pools" {
  description = "GPU node groups by the value of their label xtdist/pool, and whether they may be taken away"
  value       = { for name, pool in var.gpu_pools : name => pool.capacity }
}
