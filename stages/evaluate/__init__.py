"""Stage evaluate: what one model answers, and how good that is.

Reads the base model, the adapter to put on it (none for ``base``), the evaluation rows, checked
and encoded, and the probes. Writes the model's predictions and one JSON of metrics. Fails if the
adapter does not belong to the base or the data are not those that were checked.
"""
