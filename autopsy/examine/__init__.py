"""Works on frozen bytes only, so it runs again on any bundle, anywhere."""
