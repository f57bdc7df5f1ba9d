"""Diagnoses many bundles in child processes, here or on a cluster."""
