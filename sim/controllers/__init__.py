"""Building blocks of scripted controllers: the phases that several tasks share."""
