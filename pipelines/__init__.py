"""Which slice of the DAG makes a job, and what must hold after it; runs without Prefect."""
