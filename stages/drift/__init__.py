"""Stage drift: whether new rows are still like those that the champion learnt from.

Reads a champion's training rows and files of new rows that have passed the same checks, and what both gates counted.
Compares features that mean something in Chinese, each by a Kolmogorov-Smirnov test and by how far the distributions lie
apart, with Evidently, and the share of rows that failed a row check. Writes its report, the figures, and a verdict:
``drift``, ``steady``, or ``unknown`` where there are too few rows to tell. Fails if a file cannot be read.
"""
