"""Diagnoses stored cases again and compares each answer with the one that is expected."""
