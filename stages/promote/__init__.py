"""Stage promote: whether a challenger shall become the champion.

Reads the answers and figures of both, which stage evaluate wrote for the same rows, and the times
that :mod:`stages.promote.latency` measured of both in turn. Writes the decision with its
reasons, as JSON and as Markdown. Fails if they were evaluated on different rows.
"""
