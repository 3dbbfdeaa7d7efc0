"""From a plan to Kubernetes' objects: pure, deterministic, plain dicts for server-side apply."""
