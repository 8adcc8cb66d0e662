"""Many runs of one config, to find the best one."""
