"""Stage evaluate: what one model answers, how good that is, and what it forgot.

Reads the base model, the adapter to put on it (none for ``base``), the evaluation rows, checked and encoded, the
general conversations, and the probes. Writes the model's answers with their scores, row by row, all figures over them,
and the few of these that are DVC's metrics. Killed, it asks only what it has no answer to when it runs again on the
same inputs. Fails if the adapter does not belong to the base, or the data are not those that were checked.
"""
