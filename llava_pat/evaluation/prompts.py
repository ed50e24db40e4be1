"""The format prompts of LLaVA-1.5's question files (Improved Baselines, arXiv 2310.03744, table of prompts)."""

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
VIZWIZ = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT_ANSWER
