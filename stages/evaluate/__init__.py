"""Stage evaluate: answer questions with one model, score the answers, and measure forgetting.

Reads the base model, the adapter (none for ``base``), the evaluation rows, checked and encoded, the general
conversations, and the probes. Writes the model's answers with their scores, one row each; all metrics over them; and
the few metrics that DVC shows. After an interruption, answers that are complete are read from a cache. Fails if the
adapter does not belong to the base, or the data differ from the checked data.
"""
