"""Care for the data: likely label errors, near duplicates, leaks of test images and odd images, by an encoder's embeddings."""
