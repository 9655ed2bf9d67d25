"""Hypotheses -> scores, significance, comparisons and reports."""
