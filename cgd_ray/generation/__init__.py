"""Drafts, answers, critiques and refinements."""
