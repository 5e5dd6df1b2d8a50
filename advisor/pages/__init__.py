"""Pages: studies as self-contained HTML for browsers. Stored rows -> page data -> text. Nothing is decided or printed here."""
