"""What is done about steps that must not become part of a run."""
