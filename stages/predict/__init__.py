"""Program predict: answer a file of questions with the base model or an adapter; ``pipelines.predict`` runs it.

Reads the questions in any accepted layout, or a text file with a question per line, the base model, and the adapter.
Writes a row per question, in their order, as JSON Lines or CSV. After a kill it resumes: the bytes are those of an
uninterrupted run. A row that is no question, or too long, has the reason instead of an answer.
"""
