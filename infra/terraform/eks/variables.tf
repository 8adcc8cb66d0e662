variable "name" {
  description = "Name of the cluster, and the beginning of the names of what belongs to it"
  type        = string
  default     = "xtdist"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "name: 3 to 30 small letters, digits and dashes, beginning with a letter."
  }
}

variable "region" {
  description = "AWS region, as in eu-central-1"
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: the name of an AWS region, as in eu-central-1."
  }
}

variable "zones" {
  description = "Number of availability zones that nodes may be in"
  type        = number
  default     = 3

  validation {
    condition     = var.zones >= 2 && var.zones <= 4
    error_message = "zones: EKS wants at least 2; more than 4 are not planned for."
  }
}

variable "vpc_cidr" {
  description = "Addresses of the network: a private range, /20 or larger"
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition = (
      can(cidrhost(var.vpc_cidr, 0))
      && can(regex("^(10\\.|192\\.168\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.)", var.vpc_cidr))
      && try(tonumber(split("/", var.vpc_cidr)[1]) <= 20, false)
    )
    error_message = "vpc_cidr: a private range of IPv4 with at most 20 bits of prefix, as in 10.40.0.0/16."
  }
}

variable "kubernetes_version" {
  description = "Kubernetes version of the control plane and the nodes"
  type        = string
  default     = "1.33"

  validation {
    condition     = can(regex("^1\\.(2[89]|[3-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version: 1.28 or newer, as in 1.33."
  }
}

variable "api_cidrs" {
  description = "Public addresses that may reach the Kubernetes API; none: it is private, and reached from the VPC (VPN, bastion)"
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for cidr in var.api_cidrs : can(cidrhost(cidr, 0)) && try(tonumber(split("/", cidr)[1]) >= 16, false)
    ])
    error_message = "api_cidrs: ranges of at most 65536 addresses, as in 203.0.113.7/32; the whole internet is not one."
  }
}

variable "gpu_pools" {
  description = "GPU node groups. capacity: ON_DEMAND or SPOT; zones: how many of var.zones it may use (1 keeps NCCL's traffic within one)"
  type = map(object({
    instance_types = list(string)
    capacity       = string
    max            = number
    min            = optional(number, 0)
    disk_gb        = optional(number, 200)
    zones          = optional(number, 1)
  }))
  default = {
    gpu      = { instance_types = ["g6.12xlarge"], capacity = "ON_DEMAND", max = 2 }
    gpu-spot = { instance_types = ["g6.12xlarge", "g5.12xlarge"], capacity = "SPOT", max = 8 }
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : contains(["ON_DEMAND", "SPOT"], pool.capacity)])
    error_message = "gpu_pools: capacity is ON_DEMAND or SPOT."
  }

  validation {
    condition = alltrue([
      for pool in var.gpu_pools : pool.min >= 0 && pool.max >= max(pool.min, 1) && pool.max <= 100
    ])
    error_message = "gpu_pools: 0 <= min <= max, and max between 1 and 100: it bounds what a mistake costs."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : length(pool.instance_types) > 0 && pool.disk_gb >= 100])
    error_message = "gpu_pools: at least one instance type, and a disk of 100 GB or more (the image, spilled objects)."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : pool.zones >= 1 && pool.zones <= 4])
    error_message = "gpu_pools: zones is between 1 and 4."
  }
}

variable "system_pool" {
  description = "Nodes for what has no GPU: Ray heads, MLflow, PostgreSQL, operators"
  type = object({
    instance_types = optional(list(string), ["m7i.2xlarge"])
    min            = optional(number, 2)
    max            = optional(number, 6)
  })
  default = {}

  validation {
    condition     = var.system_pool.min >= 1 && var.system_pool.max >= var.system_pool.min
    error_message = "system_pool: 1 <= min <= max."
  }
}

variable "bucket" {
  description = "Name of the bucket for datasets, runs and artifacts; unique in all of AWS"
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket: 3 to 63 small letters, digits and dashes."
  }
}

variable "old_versions_days" {
  description = "Days after which an overwritten or deleted object is gone for good"
  type        = number
  default     = 14

  validation {
    condition     = var.old_versions_days >= 1
    error_message = "old_versions_days: at least 1."
  }
}

variable "namespace" {
  description = "Namespace of the service accounts that may use the bucket"
  type        = string
  default     = "xtdist"
}

variable "service_accounts" {
  description = "Service accounts that may use the bucket: those of the Helm chart, for a release named xtdist"
  type        = list(string)
  default     = ["xtdist", "xtdist-head"]

  validation {
    condition     = length(var.service_accounts) > 0 && alltrue([for name in var.service_accounts : !strcontains(name, "*")])
    error_message = "service_accounts: at least one, each by its name."
  }
}

variable "tags" {
  description = "Further tags of everything"
  type        = map(string)
  default     = {}
}
