"""Images to be classified: supervised families whose tasks are classes of pictures."""
