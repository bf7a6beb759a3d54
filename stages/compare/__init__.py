"""Stage compare: base and adapters side by side.

Reads every model's predictions and figures and the adapters' manifests. Writes the comparison as
Markdown, as a page that needs no network, as a short form for the terminal, and the loss curves
of all adapters as one table for ``dvc plots``. Fails if a model was evaluated on other probes.
"""
