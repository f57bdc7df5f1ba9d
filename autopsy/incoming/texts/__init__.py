"""Reads what stands beside a backtrace: command lines, logs, answers of the monitor."""
