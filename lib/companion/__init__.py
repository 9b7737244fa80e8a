"""What exists because this is a companion: notebooks begun, run, drawn and published, a course, models of your own."""
