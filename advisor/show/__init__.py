"""Show: answers, trials and machines for people, as tables, sentences, pictures and lines to paste. Nothing is decided here."""
