"""Agno's teams, agents and workflows as executors: with our sessions and runs, and all else as it is.

Who runs what: Agno runs its object, on a copy made for the turn (`copies`). Its database is replaced by one that holds
the claimed session in memory, and passes everything that is no session and no run on to the object's own (`database`).
What Agno leaves there (state, name, runs) becomes the turn's, and is committed as any turn's is (`results`).

Nothing here is imported before the user's own module has imported Agno.

Resumable: each answer of a model, and each tool of the user's, is a step of the turn, recorded before Agno goes on
(`models`, `tools`). A later attempt runs the Agno object again from the start, and is given what is recorded. Not
recorded, and so done again by a later attempt: hooks, guardrails, functions that are steps of a workflow, tools that
are generators, searches in knowledge, reads of memories, what runs remotely.
"""
