"""Stage promote: decide whether a challenger becomes the champion.

Reads the answers and metrics of both, which stage evaluate wrote for the same rows, and the latencies that
:mod:`stages.promote.latency` measured. Writes the decision and its conditions as JSON. Fails if the two were evaluated
on different rows.
"""
