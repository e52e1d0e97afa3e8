"""MLflow: journals of runs and their delivery."""
