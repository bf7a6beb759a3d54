"""Patterns and limits that several row checks share."""

import re

MAX_SEARCHED_CHARACTERS = 20_000  # of a prompt or an answer; bounds the time per row
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)  # fenced blocks and code spans of Markdown
CODE_OR_FORMULA = re.compile(rf"{CODE.pattern}|\$\$?[^$]+\$\$?", re.DOTALL)
