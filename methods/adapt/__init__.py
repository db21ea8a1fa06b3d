"""Methods that adapt a pretrained encoder; those here leave it frozen and are fitted on its features."""
