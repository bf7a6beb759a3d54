"""Stage compare: base model and adapters, side by side.

Reads the predictions and metrics of every model and the manifests of the adapters. Writes the comparison as an HTML
page that needs no network, as Markdown and as a summary for the terminal (each in English and in Chinese), and the loss
curves of all adapters as one table for ``dvc plots``. Fails if the models were evaluated on different rows or probes.
"""
