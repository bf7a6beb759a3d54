"""Statistics that several stages compute: metrics of a model's rows, confidence intervals, n-gram similarity."""
