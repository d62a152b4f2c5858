"""Report runs to health checks, to Prometheus and to a log file."""
