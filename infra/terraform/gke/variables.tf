variable "project" {
  description = "Id of the Google Cloud project"
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project: the project's id, as in my-project-1."
  }
}

variable "name" {
  description = "Name of the cluster, and the beginning of the names of what belongs to it"
  type        = string
  default     = "xtdist"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 small letters, digits and dashes, beginning with a letter."
  }
}

variable "region" {
  description = "Region, as in europe-west4"
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region: the name of a region (not of a zone), as in europe-west4."
  }
}

variable "release_channel" {
  description = "How soon Google upgrades Kubernetes"
  type        = string
  default     = "STABLE"

  validation {
    condition     = contains(["RAPID", "REGULAR", "STABLE", "EXTENDED"], var.release_channel)
    error_message = "release_channel: RAPID, REGULAR, STABLE or EXTENDED."
  }
}

variable "ranges" {
  description = "Addresses of nodes, pods, services and the control plane: private ranges that don't overlap"
  type = object({
    nodes    = optional(string, "10.60.0.0/20")
    pods     = optional(string, "10.64.0.0/14")
    services = optional(string, "10.68.0.0/20")
    control  = optional(string, "172.16.60.0/28")
  })
  default = {}

  validation {
    condition = alltrue([
      for range in values(var.ranges) :
      can(cidrhost(range, 0)) && can(regex("^(10\\.|192\\.168\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.)", range))
    ])
    error_message = "ranges: private ranges of IPv4, as in 10.60.0.0/20."
  }

  validation {
    condition     = endswith(var.ranges.control, "/28")
    error_message = "ranges: control is a /28, GKE wants that."
  }
}

variable "api_cidrs" {
  description = "Public addresses that may reach the Kubernetes API; none: it is private, and reached from the network (VPN, bastion)"
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
  description = "GPU node pools. zones: where the machine is to be had, as in [\"europe-west4-a\"]; one zone keeps NCCL's traffic within it"
  type = map(object({
    machine_type = string
    gpu_type     = string
    gpus         = number
    zones        = list(string)
    spot         = bool
    max          = number
    min          = optional(number, 0)
    disk_gb      = optional(number, 200)
  }))

  validation {
    condition     = alltrue([for pool in var.gpu_pools : contains([1, 2, 4, 8, 16], pool.gpus)])
    error_message = "gpu_pools: gpus is 1, 2, 4, 8 or 16."
  }

  validation {
    condition = alltrue([
      for pool in var.gpu_pools : pool.min >= 0 && pool.max >= max(pool.min, 1) && pool.max <= 100
    ])
    error_message = "gpu_pools: 0 <= min <= max, and max between 1 and 100: it bounds what a mistake costs."
  }

  validation {
    condition     = alltrue([for pool in var.gpu_pools : length(pool.zones) > 0 && pool.disk_gb >= 100])
    error_message = "gpu_pools: at least one zone, and a disk of 100 GB or more (the image, spilled objects)."
  }
}

variable "system_pool" {
  description = "Nodes for what has no GPU: Ray heads, MLflow, PostgreSQL, operators"
  type = object({
    machine_type = optional(string, "e2-standard-8")
    min          = optional(number, 2)
    max          = optional(number, 6)
  })
  default = {}

  validation {
    condition     = var.system_pool.min >= 1 && var.system_pool.max >= var.system_pool.min
    error_message = "system_pool: 1 <= min <= max."
  }
}

variable "bucket" {
  description = "Name of the bucket for datasets, runs and artifacts; unique in all of Google Cloud"
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

variable "labels" {
  description = "Further labels of everything"
  type        = map(string)
  default     = {}
}
