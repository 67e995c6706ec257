"""The detectors, one a module: each has a `SPEC` and imports its libraries only when it is built."""
