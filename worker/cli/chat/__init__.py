"""`teamturn chat`: a conversation in a terminal, or through a pipe.

`talk` is the conversation: what is said becomes requests, one after the other. `narration` turns a run's events into
what is shown on `screens`; what is said comes from `prompt` or `piped`.
"""
