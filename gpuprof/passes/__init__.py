"""The passes: each measures one thing, alone with the step."""
