"""What a study leaves behind for people and programs, all made from the journal."""
