"""Machine: what is here. Its devices, its memory, what plain work reaches, and whose a process or a folder is."""
