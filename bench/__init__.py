"""Measurements of fastbp beside its rivals; see README.md."""
