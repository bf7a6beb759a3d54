"""Program probe_drafts: suggest probes from the checked data, and check a file of probes.

``suggest`` reads the checked rows and writes probes for a person to edit, one for each topic. ``check`` reads probes
and the training rows, and prints which probes are damaged, which expectations their own reference answers fail, and
which wordings are repeated or occur in the training rows. ``pipelines.probes`` runs both.
"""
