"""What happens beside the steps of a run, one kind of thing per file."""
