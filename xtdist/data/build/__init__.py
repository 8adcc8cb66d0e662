"""Text to a dataset: plan, scan, filter, tokenize, encode, publish; resumable at any point."""
