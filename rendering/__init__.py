"""What one hears and sees of a melody: sound, piano rolls, training curves and the page that shows them together."""
