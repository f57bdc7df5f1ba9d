"""Really wedged QEMUs to practise on."""
