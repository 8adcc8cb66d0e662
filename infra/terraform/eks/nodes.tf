resource "aws_launch_template" "nodes" {
  for_each = merge(
    { system = 100 },
    { for name, pool in var.gpu_pools : name => pool.disk_gb },
  )

  name_prefix            = "${var.name}-${each.key}-"
  update_default_version = true

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = each.value
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  # One hop: pods can't take the node's identity from its metadata.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.name}-${each.key}" }
  }
}

resource "aws_eks_node_group" "system" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "system"
  node_role_arn   = aws_iam_role.nodes.arn
  subnet_ids      = aws_subnet.private[*].id
  ami_type        = "AL2023_x86_64_STANDARD"
  capacity_type   = "ON_DEMAND"
  instance_types  = var.system_pool.instance_types
  labels          = { "xtdist/pool" = "system" }

  launch_template {
    id      = aws_launch_template.nodes["system"].id
    version = aws_launch_template.nodes["system"].latest_version
  }

  scaling_config {
    min_size     = var.system_pool.min
    max_size     = var.system_pool.max
    desired_size = var.system_pool.min
  }

  update_config {
    max_unavailable = 1
  }

  # The autoscaler's business from here on.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [
    aws_iam_role_policy_attachment.nodes,
    aws_eks_addon.before_nodes,
  ]
}

resource "aws_eks_node_group" "gpu" {
  for_each = var.gpu_pools

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.nodes.arn
  subnet_ids      = slice(aws_subnet.private[*].id, 0, min(each.value.zones, var.zones))
  ami_type        = "AL2023_x86_64_NVIDIA" # with driver and container toolkit
  capacity_type   = each.value.capacity
  instance_types  = each.value.instance_types
  labels          = { "xtdist/pool" = each.key }

  # What needs no GPU stays away; what can't stand being interrupted stays away from spot.
  taint {
    key    = "nvidia.com/gpu"
    value  = "present"
    effect = "NO_SCHEDULE"
  }

  dynamic "taint" {
    for_each = each.value.capacity == "SPOT" ? [1] : []

    content {
      key    = "xtdist/spot"
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  launch_template {
    id      = aws_launch_template.nodes[each.key].id
    version = aws_launch_template.nodes[each.key].latest_version
  }

  scaling_config {
    min_size     = each.value.min
    max_size     = each.value.max
    desired_size = each.value.min
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [
    aws_iam_role_policy_attachment.nodes,
    aws_eks_addon.before_nodes,
  ]
}
