"""Attention: project → norm q, k → rotate → cache or backend → out."""
